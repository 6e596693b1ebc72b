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
from dmlap_kernels.trainer.distributed import RankGroup
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
    ranks: RankGroup | None = None,
) -> Tensor:
    """Embeddings (N, D) of a split, or of the given rows of it, in evaluation mode.

    Afterwards every module of the encoder is in the mode that it was in.

    Args:
        encoder: module from images (B, channels, height, width), 0 to 1, to (B, D).
        split: the images.
        indices: (N,) int64 rows of the split; default: all.
        stop: polled between chunks; True ends with `Stopped`.
        chunk_size: images that the encoder gets at a time, at most (`images_at_once`).
        ranks: share the images out, and all of them get all embeddings.

    Raises:
        Stopped: ``stop`` returned True on the way.
        TypeError, ValueError: the encoder does not return a row for each image.
    """
    device = device_of(encoder)
    rows = torch.arange(len(split), device="cpu") if indices is None else indices
    sizes = [len(rows)]
    # Each rank must have an embedding to know its length.
    if ranks is not None and len(rows) >= ranks.count > 1:
        sizes = ranks.sizes(len(rows))
        rows = rows[ranks.own(len(rows))]
    parts = []
    stopped = False
    with evaluation_mode(encoder):
        for part in rows.split(images_at_once(split, chunk_size)):
            if stop is not None and (stopped := stop()):
                break
            embeddings = encoder(split.batch(part).to(device))
            parts.append(_checked(embeddings, len(part)))
    if stop is not None and (stopped if ranks is None else ranks.any(stopped)):
        raise Stopped
    found = torch.cat(parts)
    return found if ranks is None or len(sizes) == 1 else ranks.gather(found, sizes)


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
    ranks: RankGroup | None = None,
) -> dict[str, float]:
    """`retrieval_metrics` of an encoder on a split, by the distance of its loss.

    Images are looked up in ``gallery``, or among the others of ``split``; ``stop``, ``chunk_size``
    and ``ranks`` are those of `embed`. Ranks also share the queries out.

    Raises:
        Stopped: ``stop`` returned True on the way.
        NonFiniteEmbeddings: naming the first image whose embedding is infinite or not a number.
    """
    embeddings = embed(encoder, split, stop=stop, chunk_size=chunk_size, ranks=ranks)
    require_finite(embeddings, split)
    options = search_options(loss, loss_options or {})
    references: tuple[Tensor, ...] = ()
    if gallery is not None:
        others = embed(encoder, gallery, stop=stop, chunk_size=chunk_size, ranks=ranks)
        require_finite(others, gallery)
        references = (others, gallery.labels.to(others.device))
    labels = split.labels.to(embeddings.device)
    options |= {"ks": ks, "clustering": clustering}
    if ranks is None or ranks.count == 1 or clustering:
        return retrieval_metrics(embeddings, labels, *references, **options)
    return _of_all_queries(ranks, embeddings, labels, references, options)


def _of_all_queries(
    ranks: RankGroup,
    embeddings: Tensor,
    labels: Tensor,
    references: tuple[Tensor, ...],
    options: dict[str, Any],
) -> dict[str, float]:
    """`retrieval_metrics`, of which each rank computes those of its share of the queries."""
    own = ranks.own(len(embeddings))
    queries = embeddings[own], labels[own]
    itself = None if references else torch.arange(own.start, own.stop, device=labels.device)
    others = references or (embeddings, labels)
    numbers = torch.bincount(others[1], minlength=int(labels.max()) + 1)[queries[1]]
    counted = int((numbers > (0 if references else 1)).sum())
    found: dict[str, float] = {}
    if counted:
        found = retrieval_metrics(*queries, *others, self_index=itself, **options)
    parts = ranks.all((counted, found))
    total = sum(count for count, _ in parts)
    if not total:
        # To be refused as it always is.
        return retrieval_metrics(embeddings, labels, *references, **options)
    names = next(values for count, values in parts if count)
    return {
        name: sum(count * values[name] for count, values in parts if count) / total
        for name in names
    }


def evaluate_pixels(
    split: Split, gallery: Split | None = None, *, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, float]:
    """`retrieval_metrics` of the pixels themselves by cosine: what any encoder has to beat."""
    references = () if gallery is None else (gallery.pixels(), gallery.labels)
    return retrieval_metrics(split.pixels(), split.labels, *references, ks=ks, distance="cosine")
