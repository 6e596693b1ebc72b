"""Batch normalisation with the statistics of a batch that lies on several ranks.

Unlike `torch.nn.SyncBatchNorm` it needs neither a GPU nor other modules: whatever calls
``torch.nn.functional.batch_norm`` is served, such as the activations of timm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from dmlap_kernels.trainer.distributed import RankGroup


class SyncBatchNorm(TorchFunctionMode):
    """While it is entered, batch normalisation in training mode is that of all ranks' rows."""

    def __init__(self, ranks: RankGroup) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        return self._batch_norm(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            given = weight, bias, training, momentum, eps
            return F.batch_norm(input, running_mean, running_var, *given)
        normalized, mean, var, count = _Normalized.apply(input, eps, self._ranks)
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                unbiased = var * (count / (count - 1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        shape = [1, -1] + [1] * (input.ndim - 2)
        if weight is not None:
            normalized = normalized * weight.view(shape)
        if bias is not None:
            normalized = normalized + bias.view(shape)
        return normalized.to(input.dtype)


class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) of each channel, in float32 at least, and the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, ranks: RankGroup) -> tuple[Tensor, ...]:
        rows, dims, shape = _wide(x), [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        channels = x.shape[1]
        own = torch.full((1,), x.numel() // channels, dtype=rows.dtype, device=x.device)
        sums = ranks.add_up(torch.cat((rows.sum(dims), own)))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        # From differences: the mean of squares less the square of the mean cancels.
        deviations = rows - mean.view(shape)
        var = ranks.add_up(deviations.square().sum(dims)) / count
        scale = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, mean, scale, count)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, var, count)
        return deviations * scale.view(shape), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, mean, scale, count = ctx.saved_tensors
        dims, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        normalized = (_wide(x) - mean.view(shape)) * scale.view(shape)
        mine = torch.cat((grad.sum(dims), (grad * normalized).sum(dims)))
        shift, slope = (ctx.ranks.add_up(mine) / count).view(2, *shape[:1], -1, *shape[2:])
        return ((grad - shift - normalized * slope) * scale.view(shape)).to(x.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
