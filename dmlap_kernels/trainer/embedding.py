"""Embedding a split, and judging the embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels.data import DEFAULT_KS, Split
from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.trainer import defaults

_IMAGES_AT_ONCE = 512


class Stopped(Exception):
    """The caller's ``stop`` asked for an end."""


@torch.no_grad()
def embed(
    encoder: nn.Module,
    split: Split,
    indices: Tensor | None = None,
    *,
    stop: Callable[[], bool] | None = None,
) -> Tensor:
    """Embeddings (N, D) of a split, or of the given rows of it, in evaluation mode.

    Raises:
        Stopped: ``stop`` returned True on the way.
    """
    device = next(encoder.parameters()).device
    training = encoder.training
    encoder.eval()
    parts = []
    try:
        rows = torch.arange(len(split)) if indices is None else indices
        for part in rows.split(_IMAGES_AT_ONCE):
            if stop is not None and stop():
                raise Stopped
            parts.append(encoder(split.batch(part).to(device)))
    finally:
        encoder.train(training)
    return torch.cat(parts)


def search_options(loss: str, loss_options: dict[str, Any]) -> dict[str, Any]:
    """Keywords that make `nearest` and its kin search by the distance that a loss trains.

    Losses without a ``distance`` work on cosines; an inner product is searched by its cosine.
    """
    kind: Any = PROXY_LOSSES.get(loss) or LOSSES[loss]
    defaults = inspect.signature(kind.function).parameters
    options: dict[str, Any] = {
        name: loss_options[name] for name in ("normalize", "backend") if name in loss_options
    }
    if "normalize" in defaults and defaults["normalize"].default:
        options.setdefault("normalize", True)
    distance = defaults["distance"].default if "distance" in defaults else "cosine"
    distance = loss_options.get("distance", distance)
    options["distance"] = "cosine" if distance == "dot" else distance
    if loss_options.get("mining") == "distance_weighted":
        options["normalize"] = True
    return options


def evaluate(
    encoder: nn.Module,
    split: Split,
    *,
    gallery: Split | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    loss: str = defaults.LOSS,
    loss_options: dict[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
    clustering: bool = False,
) -> dict[str, float]:
    """`retrieval_metrics` of an encoder on a split, by the distance of its loss.

    Images are looked up in ``gallery``, or among the others of ``split``.
    """
    embeddings = embed(encoder, split, stop=stop)
    options = search_options(loss, loss_options or {})
    references: tuple[Tensor, ...] = ()
    if gallery is not None:
        others = embed(encoder, gallery, stop=stop)
        references = (others, gallery.labels.to(others.device))
    labels = split.labels.to(embeddings.device)
    options |= {"ks": ks, "clustering": clustering}
    return retrieval_metrics(embeddings, labels, *references, **options)


def evaluate_pixels(
    split: Split, gallery: Split | None = None, *, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, float]:
    """`retrieval_metrics` of the pixels themselves by cosine: what any encoder has to beat."""
    references = () if gallery is None else (gallery.pixels(), gallery.labels)
    return retrieval_metrics(split.pixels(), split.labels, *references, ks=ks, distance="cosine")
