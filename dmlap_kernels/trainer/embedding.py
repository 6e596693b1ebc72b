"""Embedding a split, and judging the embeddings."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels import checks
from dmlap_kernels.data import DEFAULT_KS, Split
from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.diagnosis import require_finite
from dmlap_kernels.trainer.replay import evaluation_mode

# What the encoder gets at a time where nothing bounds it further: so many images, and no more
# bytes of them. The activations of a ResNet-50 take some 20 times the bytes.
_IMAGES_AT_ONCE = 512
_BYTES_AT_ONCE = 16 << 20


class Stopped(Exception):
    """The caller's ``stop`` asked for an end."""


def images_at_once(split: Split, chunk_size: int | None = None) -> int:
    """How many images of ``split`` an encoder gets at a time when there is no gradient to take.

    At most ``chunk_size``, 512, and as many as take 16 MiB in float32; at least one.
    """
    fitting = _BYTES_AT_ONCE // (4 * math.prod(split.images.shape[1:]))
    return max(1, min(chunk_size or _IMAGES_AT_ONCE, _IMAGES_AT_ONCE, fitting))


@torch.no_grad()
def embed(
    encoder: nn.Module,
    split: Split,
    indices: Tensor | None = None,
    *,
    stop: Callable[[], bool] | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Embeddings (N, D) of a split, or of the given rows of it, in evaluation mode.

    Afterwards every module of the encoder is in the mode that it was in.

    Args:
        encoder: module from images (B, channels, height, width), 0 to 1, to (B, D).
        split: the images.
        indices: (N,) int64 rows of the split; default: all.
        stop: polled between chunks; True ends with `Stopped`.
        chunk_size: images that the encoder gets at a time, at most (`images_at_once`).

    Raises:
        Stopped: ``stop`` returned True on the way.
        TypeError, ValueError: the encoder does not return a row for each image.
    """
    device = device_of(encoder)
    parts = []
    with evaluation_mode(encoder):
        rows = torch.arange(len(split), device="cpu") if indices is None else indices
        for part in rows.split(images_at_once(split, chunk_size)):
            if stop is not None and stop():
                raise Stopped
            embeddings = encoder(split.batch(part).to(device))
            parts.append(_checked(embeddings, len(part)))
    return torch.cat(parts)


def device_of(module: nn.Module) -> torch.device:
    """Where the first parameter or buffer of ``module`` is; the CPU if it has none."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _checked(embeddings: Any, rows: int) -> Tensor:
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"encoder must return a tensor (B, D), got {type(embeddings).__name__}")
    if embeddings.ndim != 2 or len(embeddings) != rows or not embeddings.is_floating_point():
        raise ValueError(
            f"encoder must return floating-point embeddings ({rows}, D) of {rows} images, got "
            f"{checks.describe(embeddings)}"
        )
    return embeddings


def search_options(loss: str, loss_options: dict[str, Any]) -> dict[str, Any]:
    """Keywords that make `nearest` and its kin search by the distance that a loss trains.

    Losses without a ``distance`` work on cosines; an inner product is searched by its cosine.
    """
    kind: Any = PROXY_LOSSES.get(loss) or LOSSES[loss]
    own = inspect.signature(kind.function).parameters
    options: dict[str, Any] = {
        name: loss_options[name] for name in ("normalize", "backend") if name in loss_options
    }
    usual = own["normalize"].default if "normalize" in own else False
    if defaults.loss_options(loss, {}).get("normalize", usual):
        options.setdefault("normalize", True)
    distance = own["distance"].default if "distance" in own else "cosine"
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
    chunk_size: int | None = None,
) -> dict[str, float]:
    """`retrieval_metrics` of an encoder on a split, by the distance of its loss.

    Images are looked up in ``gallery``, or among the others of ``split``; ``stop`` and
    ``chunk_size`` are those of `embed`.

    Raises:
        Stopped: ``stop`` returned True on the way.
        NonFiniteEmbeddings: naming the first image whose embedding is infinite or not a number.
    """
    embeddings = embed(encoder, split, stop=stop, chunk_size=chunk_size)
    require_finite(embeddings, split)
    options = search_options(loss, loss_options or {})
    references: tuple[Tensor, ...] = ()
    if gallery is not None:
        others = embed(encoder, gallery, stop=stop, chunk_size=chunk_size)
        require_finite(others, gallery)
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
