"""Evaluation of embeddings."""

from __future__ import annotations

from dmlap_kernels.evaluation.retrieval import retrieval_metrics

__all__ = ["retrieval_metrics"]
