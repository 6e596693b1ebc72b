"""`fuse`: an object of pytorch-metric-learning becomes its fused equal."""

from __future__ import annotations

import copy
import logging
from typing import Any

from pytorch_metric_learning import losses as their_losses
from pytorch_metric_learning import miners as their_miners
from pytorch_metric_learning.utils import distributed
from torch import nn

from dmlap_kernels.compat.pytorch_metric_learning import losses, miners
from dmlap_kernels.compat.pytorch_metric_learning.base import Fused
from dmlap_kernels.compat.pytorch_metric_learning.geometry import NotFused

logger = logging.getLogger("dmlap_kernels.compat.pytorch_metric_learning")

LOSSES: dict[type, type] = {
    getattr(their_losses, name): getattr(losses, name)
    for name in losses.__all__
    if name != "CrossBatchMemory"
}
MINERS: dict[type, type] = {
    getattr(their_miners, name): getattr(miners, name)
    for name in (
        "BatchEasyHardMiner BatchHardMiner DistanceWeightedMiner MultiSimilarityMiner "
        "PairMarginMiner TripletMarginMiner"
    ).split()
}


def fuse(loss: nn.Module, miner: Any = None, *, strict: bool = True) -> Any:
    """The fused equal of a loss of pytorch-metric-learning, or of a wrapper around one.

    What comes back shares the parameters, distance, reducer and regularisers of ``loss``, which
    stays as it is. ``explain(result)`` says what was done, as the logger
    ``dmlap_kernels.compat.pytorch_metric_learning`` does.

    Args:
        loss: one of their losses, or `CrossBatchMemory`, `SelfSupervisedLoss`, `MultipleLosses` or
            `DistributedLossWrapper` around some.
        miner: one of theirs, which then runs inside of the loss: call it without
            ``indices_tuple``. Those that the fused losses know are in the sweep, others give
            lists.
        strict: raise `NotFused` where nothing of ``loss`` can be fused; False hands it to theirs,
            with one warning.

    Returns:
        A module that is called as ``loss`` is.

    Raises:
        NotFused: with the reason; ``strict=False`` avoids it.

    Example:
        >>> from pytorch_metric_learning import losses, miners
        >>> from dmlap_kernels.compat.pytorch_metric_learning import explain, fuse
        >>> loss = fuse(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
        >>> print(explain(loss))
        MultiSimilarityLoss: fused_multi_similarity_loss on cosine; MultiSimilarityMiner mines \
inside of the loss
    """
    fused = _fused(loss, strict)
    if miner is not None:
        if not isinstance(fused, Fused):
            raise TypeError(
                "miner must be given to the wrapper, or to fuse together with the loss inside of "
                f"it, got {type(loss).__name__}"
            )
        # Beside the modules inside, so that it hides the attribute of the class.
        fused.__dict__["inner_miner"] = fuse_miner(miner)
    logger.info("%s", explain(fused))
    return fused


def fuse_miner(miner: Any) -> Any:
    """The miner that a fused loss takes into its sweep, or ``miner`` itself, which gives lists."""
    ours = MINERS.get(type(miner))
    return miner if ours is None else _as(miner, ours)


def explain(loss: nn.Module) -> str:
    """What a call of ``loss`` runs, a line a loss."""
    if isinstance(loss, Fused):
        text = loss.explain()
        miner = loss.inner_miner
        if miner is None:
            return text
        inside = hasattr(miner, "kind")
        return f"{text}; {type(miner).__name__} " + (
            "mines inside of the loss" if inside else "gives lists"
        )
    inner = list(_inner(loss))
    if not inner:
        return f"{type(loss).__name__}: left as it is"
    lines = [f"{type(loss).__name__} of"]
    return "\n".join(lines + [f"  {line}" for one in inner for line in explain(one).split("\n")])


def _inner(loss: nn.Module) -> Any:
    if isinstance(loss, their_losses.MultipleLosses):
        return loss.losses.values() if loss.is_dict else loss.losses
    held = getattr(loss, "loss", None)
    return [held] if isinstance(held, nn.Module) else []


def _fused(loss: Any, strict: bool) -> Any:
    if isinstance(loss, Fused):
        return loss
    kind = type(loss)
    if kind in LOSSES:
        fused = _as(loss, LOSSES[kind])
        fused.strict = strict
        if strict:
            fused._way()
        return fused
    if kind is their_losses.MultipleLosses:
        fused = _as(loss, kind)
        every = loss.losses.items() if loss.is_dict else enumerate(loss.losses)
        made = {key: _fused(one, strict) for key, one in every}
        held: Any = nn.ModuleDict if loss.is_dict else nn.ModuleList
        fused.losses = held(made if loss.is_dict else made.values())
        _fuse_miners(fused)
        return fused
    wrappers: dict[type, type] = {
        their_losses.CrossBatchMemory: losses.CrossBatchMemory,
        their_losses.SelfSupervisedLoss: their_losses.SelfSupervisedLoss,
        distributed.DistributedLossWrapper: distributed.DistributedLossWrapper,
    }
    if kind in wrappers:
        fused = _as(loss, wrappers[kind])
        fused.loss = _fused(loss.loss, strict)
        if getattr(fused, "miner", None) is not None:
            fused.miner = fuse_miner(fused.miner)
        return fused
    known = ", ".join(sorted(one.__name__ for one in (*LOSSES, *wrappers)))
    reason = NotFused(
        f"loss must be one of {known} or MultipleLosses of pytorch-metric-learning itself, got "
        f"{kind.__module__}.{kind.__name__}"
    )
    if strict:
        raise reason
    logger.warning("%s is left as it is: %s", kind.__name__, reason)
    return loss


def _fuse_miners(fused: Any) -> None:
    if fused.miners is None:
        return
    if fused.is_dict:
        fused.miners = nn.ModuleDict({k: fuse_miner(m) for k, m in fused.miners.items()})
    else:
        fused.miners = nn.ModuleList([fuse_miner(m) for m in fused.miners])


def _as(module: Any, kind: type) -> Any:
    """A copy of ``module`` as a ``kind``, with the same parameters, buffers and modules inside."""
    made = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = dict(module.__dict__[name])
    made.__class__ = kind
    return made
