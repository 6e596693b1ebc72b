"""What a run needs, tried in small before its first step, so that nothing fails after hours."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlap_kernels.data import Split
from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.extras import MissingExtra, require
from dmlap_kernels.trainer.batches import Batch
from dmlap_kernels.trainer.checkpoint import pack_optimizer
from dmlap_kernels.trainer.class_mining import hardest_classes
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.diagnosis import OutOfMemory, is_out_of_memory
from dmlap_kernels.trainer.embedding import embed, search_options
from dmlap_kernels.trainer.nested_state import apart, pack
from dmlap_kernels.trainer.optimization import build_optimizer


@contextlib.contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they are."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        yield


def try_encoder(encoder: nn.Module, name: str, split: Split) -> Tensor:
    """Embeddings (2, D) of two images.

    Raises:
        TypeError, ValueError: the encoder does not take such images, or returns something else.
    """
    shape = tuple(split.images.shape[1:])
    try:
        return embed(encoder, split, torch.arange(min(2, len(split)), device="cpu"))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"encoder {name} cannot embed images of shape {shape}: {error}") from error


def try_objective(objective: nn.Module, config: TrainConfig, batch: Batch, like: Tensor) -> None:
    """The loss of random embeddings in place of a batch, backward, search and mining included.

    Args:
        objective: of the run.
        config: of the run.
        batch: any of the run's.
        like: embeddings (n, D) of its encoder.

    Raises:
        ValueError: naming what does not fit.
        MissingExtra: an optional dependency is missing.
    """
    shape = len(batch.labels), like.shape[1]
    random = torch.Generator(device="cpu").manual_seed(config.seed)
    rows = F.normalize(torch.randn(shape, generator=random, device="cpu")).to(
        like.device, like.dtype
    )
    x, labels = rows.requires_grad_(), batch.labels.to(like.device)
    with _suiting(f"loss_options do not suit loss {config.loss!r}"):
        loss, stats = objective(x, labels, batch.representatives)
        torch.autograd.grad(loss, x, allow_unused=True)
        int(stats.violated)
    options = search_options(config.loss, config.loss_options)
    with _suiting(f"loss_options of loss {config.loss!r} do not suit the evaluation"):
        retrieval_metrics(x.detach(), labels, ks=(1,), **options)
    if config.mines:
        of_classes = torch.stack([x.detach()[labels == c][:1] for c in labels.unique().tolist()])
        with _suiting(f"hard_search {config.hard_search!r} does not suit the loss"):
            hardest_classes(of_classes, 1, search=config.hard_search, **options)


def try_optimizer(config: TrainConfig, device: torch.device) -> None:
    """A step of the optimizer that the configuration names, on four numbers.

    Raises:
        ValueError: its options do not suit it.
    """
    weights = nn.Parameter(torch.zeros(2, 2, device=device))
    weights.grad = torch.ones_like(weights)
    options = dict(config.optimizer_options)
    # The largest rate that a group will get.
    rate = config.learning_rate * (max(1.0, config.loss_rate) if config.learns_in_loss else 1.0)
    optimizer = build_optimizer(config.optimizer, [{"params": [weights]}], rate, options)
    with _suiting(f"optimizer_options or rates do not suit optimizer {config.optimizer!r}"):
        optimizer.step()


def check_optimizer(optimizer: Any, known: list[nn.Parameter]) -> None:
    """Refuse what is no optimizer of the run's parameters, with TypeError or ValueError."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must be a function from groups of parameters to a torch.optim.Optimizer, "
            f"but it returned {type(optimizer).__name__}"
        )
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    identities = {id(p) for p in known}
    foreign = sum(id(p) not in identities for p in learned)
    if foreign or not learned:
        raise ValueError(
            "optimizer must be made of the parameters that it is given, but "
            + (f"{foreign} of its {len(learned)} are others" if learned else "it has none")
        )
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if isinstance(rate, (int, float, Tensor)) and not math.isfinite(rate):
            raise ValueError(f"optimizer must have finite learning rates, got {rate}")
    try:
        inspect.signature(optimizer.step).bind()
    except TypeError:
        raise TypeError(
            f"optimizer {type(optimizer).__name__} takes its step with a closure, which the "
            "trainer does not give"
        ) from None


def try_saving(
    out: Path, config: TrainConfig, modules: list[nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """See that a checkpoint and the results can be written to ``out``; nothing is left there.

    Raises:
        OSError: the folder cannot be made or written to.
        TypeError: a state cannot be saved.
        MissingExtra: what writes the files is not installed.
    """
    require("safetensors.torch", purpose="checkpoints")
    require("matplotlib.figure", purpose="curves.png")
    json.dumps(config.to_dict())
    pack_optimizer(optimizer)
    for module in modules:
        pack(apart(module.state_dict())[1], {}, f"the state of {type(module).__name__}")
    made: list[Path] = []
    try:
        missing = [path for path in (out, *out.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b"checkpoint")
    # A zero byte in the name is a ValueError.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"out must be a folder that can be made and written to, got {str(out)!r}: {reason}"
        ) from error
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


def has_modes(module: nn.Module) -> bool:
    """Whether training and evaluation differ in ``module`` itself."""
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    return isinstance(module, kinds)


@contextlib.contextmanager
def memory_advice(
    config: TrainConfig, device: torch.device, step: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """Raise OutOfMemory, saying what helps, if memory is used up after ``step()`` steps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        rows = (config.classes_per_batch or 0) * config.samples_per_class
        size = config.chunk_size
        at_once = "" if size is None or size >= rows else f", {size} at a time"
        raise OutOfMemory(
            f"out of memory on {device} after step {step()}, with batches of {rows} images"
            f"{at_once}: give the encoder fewer at a time (chunk_size, --chunk-size), or take "
            "smaller batches (classes_per_batch, samples_per_class) or smaller images"
        ) from error


@contextlib.contextmanager
def _suiting(message: str) -> Iterator[None]:
    """Say ``message`` and the reason, whatever goes wrong."""
    try:
        yield
    except MissingExtra:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{message} here: {error}") from error
