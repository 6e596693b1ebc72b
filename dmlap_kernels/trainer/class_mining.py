"""The hardest classes of every class by the embeddings of its representatives."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.extras import require
from dmlap_kernels.faiss_gpus import trained
from dmlap_kernels.mining import hard_classes
from dmlap_kernels.trainer import defaults

SEARCHES = ("exact", "faiss")

_MARGIN = 1.0
_LISTS_PROBED = 16
_ROWS_AT_ONCE = 4096


def hardest_classes(
    embeddings: Tensor, k: int, *, search: str = defaults.HARD_SEARCH, **options: Any
) -> Tensor:
    """The ``k`` hardest others of every class by `dmlap_kernels.hard_classes`, (C, k) int64.

    Args:
        embeddings: (C, R, D), R representatives of each of the classes 0 to C - 1.
        k: 1 to C - 1.
        search: ``"exact"``; or ``"faiss"``: candidates from an inverted file over the
            representatives (faiss ``IndexIVFFlat``, 4 sqrt(C R) lists of which 16 are searched),
            judged exactly; on GPUs if faiss has some. Candidates may be missed; time grows as
            (C R)^1.5 instead of (C R)^2. A class that has fewer than k candidates repeats its last
            one.
        options: ``distance``, ``normalize`` and ``backend`` of `dmlap_kernels.hard_classes`; an
            index has no use for the last.

    Raises:
        MissingExtra: faiss is not installed.
    """
    classes, per_class, _ = embeddings.shape
    if search == "exact":
        labels = torch.arange(classes, device=embeddings.device).repeat_interleave(per_class)
        return hard_classes(embeddings.flatten(0, 1), labels, k, **options).neighbors
    return _by_index(embeddings, k, options)


def _by_index(embeddings: Tensor, k: int, options: dict[str, Any]) -> Tensor:
    faiss = require("faiss", purpose="hard_search 'faiss'", extra="faiss")
    classes, per_class, dim = embeddings.shape
    distance = options.get("distance", "euclidean")
    rows = embeddings.detach().float().cpu()
    if options.get("normalize") or distance == "cosine":
        # On unit rows all distances give the same order.
        rows = F.normalize(rows, dim=2)
    flat = rows.flatten(0, 1).contiguous().numpy()
    lists = max(1, min(int(4 * math.sqrt(len(flat))), len(flat) // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    index.cp.seed = 0
    index.cp.min_points_per_centroid = 1  # no warning for few classes
    index.nprobe = _LISTS_PROBED
    neighbors = min(len(flat), per_class * (k + 1))
    index = trained(faiss, index, flat, neighbors)
    index.add(flat)
    _, found = index.search(flat, neighbors)
    own = torch.arange(classes, device="cpu").repeat_interleave(per_class)[:, None]
    candidates = torch.from_numpy(found) // per_class
    candidates = torch.where(torch.from_numpy(found) < 0, own, candidates)
    candidates = candidates.view(classes, -1)
    parts = [
        _ranked(rows, part, candidates[part], k, distance)
        for part in torch.arange(classes, device="cpu").split(max(1, _ROWS_AT_ONCE // per_class**2))
    ]
    return torch.cat(parts).to(embeddings.device)


def _ranked(rows: Tensor, part: Tensor, candidates: Tensor, k: int, distance: str) -> Tensor:
    """The k hardest of the ``candidates`` (P, n) of the classes ``part`` (P,), hardest first.

    By the mean over pairs of [margin - d]+, then the smallest distance, then the label.
    """
    ordered = candidates.sort(1).values
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0)) | (ordered == part[:, None])
    d2 = (rows[part][:, None, :, None] - rows[ordered][:, :, None]).square().sum(-1)
    d = {"sqeuclidean": d2, "cosine": d2 / 2}.get(distance, d2.sqrt()).flatten(2)  # [P, n, R R]
    score = (_MARGIN - d).clamp_min(0).mean(2).masked_fill(again, -torch.inf)
    by_distance = d.amin(2).argsort(dim=1, stable=True)
    order = score.gather(1, by_distance).argsort(dim=1, descending=True, stable=True)
    best = by_distance.gather(1, order)
    usable = (~again).sum(1).clamp(1, k)
    picks = torch.minimum(torch.arange(k, device="cpu").expand(len(part), k), usable[:, None] - 1)
    return ordered.gather(1, best.gather(1, picks))
