"""Evaluation of embeddings."""

from __future__ import annotations

from dmlap_kernels.evaluation.clustering import (
    assign_clusters,
    clustering_metrics,
    compare_clusters,
)
from dmlap_kernels.evaluation.retrieval import METRICS, retrieval_metrics

__all__ = [
    "METRICS",
    "assign_clusters",
    "clustering_metrics",
    "compare_clusters",
    "retrieval_metrics",
]
