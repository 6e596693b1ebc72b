"""Metrics of tensors on the CPU are taken there, whatever the default device."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dmlap_kernels.evaluation import METRICS, clustering_metrics, retrieval_metrics
from tests.evaluation.test_retrieval import _points


def test_metrics(backend: str) -> None:
    x, labels = _points(40, 5, 0)
    y, ref_labels = torch.cat((x, x + 1)), torch.cat((labels, labels))
    options = {"metrics": METRICS[:6], "backend": backend}
    for average, factor in (("micro", 1), ("macro", 2.0**80), (None, 1)):
        references = (y * factor, ref_labels)
        for given, where in (
            ((), {}),
            (references, {}),
            (references, {"ref_includes_query": True}),
            (references, {"self_index": torch.arange(40)}),
        ):
            call = partial(
                retrieval_metrics, x * factor, labels, *given, average=average, **where, **options
            )
            want = call()
            with torch.device("meta"):
                assert call() == want


def test_clusters() -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("sklearn")
    x, labels = _points(40, 5, 0)
    want = clustering_metrics(x, labels.numpy())
    with torch.device("meta"):
        assert clustering_metrics(x, labels.numpy()) == want
