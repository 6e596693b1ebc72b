"""Losses with a miner inside of the sweep: what the miner leaves out is a bound on a hinge.

A miner that keeps the pairs beyond a bound b needs no list. The sum of ``[d - L]+`` over pairs with
d > b is the sum over all pairs where b <= L. Else it is that of ``[d - b]+``, and b - L for each of
these pairs, whose number comes with the sum. So for triplets, with the difference of their
distances.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.compat.pytorch_metric_learning.geometry import (
    Entry,
    NotFused,
    geometry,
    many_terms,
    margin_geometry,
    reduced,
    simple,
)
from dmlap_kernels.compat.pytorch_metric_learning.lazy import Mined


def hard_triplets(loss: Any, call: Any, mined: Mined) -> Entry | None:
    """One triplet an anchor, or one a positive pair with a drawn negative."""
    miner = mined.miner
    if loss.swap and not call.alone:
        return None
    mining = _one_triplet(mined, loss.distance)
    if mining == "easy_positive_semihard" and simple(loss.reducer_) is None:
        return None  # which anchors have a triplet is not known here
    if mining in ("easy_positive", "easy_positive_semihard") and call.skip is not None:
        return None  # theirs picks the anchor itself, the nearest of all, and leaves that pair out
    if mining is not None:
        own: dict[str, Any] = {"mining": mining}
    elif _draws(mined, loss.distance) and simple(loss.reducer_) is not None:
        # With another reducer it is listed: how many draws an anchor has is not known here.
        bounds = {name: getattr(miner, name) for name in ("cutoff", "nonzero_loss_cutoff")}
        own = {"mining": "distance_weighted"} | bounds
    else:
        return None

    def sweep(reduction: str) -> Tensor:
        return loss.sweep(call, reduction=reduction, **own)

    def counts() -> Tensor:
        return (call.triplets() > 0).long()

    try:
        return many_terms(loss.reducer_, sweep, call.labels, counts, pairs=False)
    except NotFused:
        return None


# Of `BatchEasyHardMiner`, by its strategies for positives and negatives.
_MINING = {
    ("hard", "hard"): "hard",
    ("easy", "hard"): "easy_positive",
    ("easy", "semihard"): "easy_positive_semihard",
}


def _one_triplet(mined: Mined, distance: Any) -> str | None:
    """The mining of a miner that picks one triplet an anchor, None for other miners."""
    if mined.is_kind("BatchHardMiner", distance):
        return "hard"
    if mined.is_kind("BatchEasyHardMiner", distance):
        return _MINING.get(mined.miner.picks)
    return None


def _draws(mined: Mined, distance: Any) -> bool:
    """It draws by Euclidean distances of unit rows, and so does the loss, whatever its own."""
    if mined.miner is None or mined.miner.kind != "DistanceWeightedMiner":
        return False
    kind = geometry(distance)
    return kind.normalize or kind.distance == "cosine"


def triplets_within(loss: Any, call: Any, mined: Mined) -> Entry | None:
    """``TripletMarginMiner`` of all kinds, for hinges: triplets whose violation lies in a range."""
    reduction = simple(loss.reducer_)
    if not mined.is_kind("TripletMarginMiner", loss.distance) or loss.smooth_loss or loss.swap:
        return None
    margin, given = loss.margin, float(mined.miner.margin)
    if reduction is None or isinstance(margin, Tensor):
        return None
    kind = mined.miner.type_of_triplets
    # Of d(i, n) - d(i, p): those in (low, high] are mined, and those below the margin count.
    low = {"semihard": 0.0, "easy": given}.get(kind, -math.inf)
    high = {"easy": math.inf, "hard": min(0.0, given)}.get(kind, given)
    if low >= min(high, margin) and reduction != "mean":
        return reduced(_nothing(call.x))
    if low == -math.inf and high >= margin and reduction != "mean":
        return reduced(loss.sweep(call, mining="all", reduction=reduction))
    return reduced(_within(loss, call, low, high, reduction))


def _within(loss: Any, call: Any, low: float, high: float, reduction: str) -> Tensor:
    def below(bound: float) -> tuple[Tensor, Tensor]:
        """Triplets whose difference is less than ``bound``: their terms' sum, and their number."""
        if bound == -math.inf:
            return _nothing(call.x), call.x.new_zeros(())
        total, stats = loss.sweep(
            call, mining="all", margin=bound, reduction="sum", return_stats=True
        )
        count = stats.violated.to(total.dtype)
        return total + (loss.margin - bound) * count, count

    upper = min(high, loss.margin)
    if low < upper:
        (total, count), (less, fewer) = below(upper), below(low)
        total, count = total - less, count - fewer
    else:
        total, count = _nothing(call.x), call.x.new_zeros(())
    if reduction == "sum":
        return total
    if reduction == "mean" and high != upper:
        whole = call.triplets().sum() if high == math.inf else below(high)[1].detach()
        count = whole - below(low)[1].detach()
    return torch.where(count > 0, total, total * 0) / count.clamp(min=1)


def pairs_within(loss: Any, call: Any, mined: Mined) -> dict[str, Entry] | None:
    """``PairMarginMiner`` for the contrastive loss."""
    if not mined.is_kind("PairMarginMiner", loss.distance):
        return None
    reductions = [simple(reducer) for reducer in loss.reducers()]
    bounds = loss.pos_margin, loss.neg_margin
    if None in reductions or any(isinstance(bound, Tensor) for bound in bounds):
        return None
    kind, miner = margin_geometry(loss.distance), mined.miner
    mines = kind.bound(miner.pos_margin), kind.bound(miner.neg_margin)
    counts = kind.bound(loss.pos_margin), kind.bound(loss.neg_margin)
    if mines[0] <= counts[0] and mines[1] >= counts[1] and "mean" not in reductions:
        return loss._all(call)  # what is left out has no violation
    pos = _beyond(loss.positives, call, "pos_margin", mines[0], counts[0], reductions[0], 1)
    neg = _beyond(loss.negatives, call, "neg_margin", mines[1], counts[1], reductions[1], -1)
    return {"pos_loss": reduced(pos), "neg_loss": reduced(neg)}


def _beyond(
    part: Any, call: Any, name: str, mined: float, margin: float, reduction: Any, sign: int
) -> Tensor:
    """Hinges at ``margin`` of the pairs beyond ``mined``; ``sign`` says on which side that is."""
    extra = sign * (mined - margin)
    if extra <= 0 and reduction != "mean":
        return part(call, reduction=reduction, **{name: margin})
    total, stats = part(call, reduction="sum", return_stats=True, **{name: mined})
    count = stats.violated.to(total.dtype)
    if extra <= 0:
        total = part(call, reduction="sum", **{name: margin})
    else:
        total = total + extra * count
    if reduction == "sum":
        return total
    return torch.where(count > 0, total, total * 0) / count.clamp(min=1)


def _nothing(x: Tensor) -> Tensor:
    """0, attached to the graph, whatever the rows."""
    return (x[:0] * 0).sum()
