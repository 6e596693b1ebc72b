"""Weights from a file: read, matched with an encoder's own, and told apart in a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels.encoders import TimmEncoder
from dmlap_kernels.extras import require
from dmlap_kernels.trainer.checkpoint import of_prefix

# What training scripts keep a state dict under, and what they wrap a model in.
_ENTRIES = ("state_dict_ema", "state_dict", "model_state_dict", "model_state", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
# Counts batches; does not take part in what a network computes.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Matched:
    """Which tensors of a file went where.

    Attributes:
        path: the file.
        rows: (name in the encoder, name in the file, shape) of each tensor that was taken.
        by_order: names differ, and tensors were matched in the order in which they stand.
        unused: tensors of the file that the encoder has no place for, such as a classifier.
        kept: tensors of the encoder that the file does not have, such as the last layer.
    """

    path: Path
    rows: tuple[tuple[str, str, tuple[int, ...]], ...]
    by_order: bool
    unused: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        how = ", by their order, because the names differ" if self.by_order else ""
        groups: dict[tuple[str, str], list[int]] = {}
        for own, other, shape in self.rows:
            count = groups.setdefault((_part(own), _part(other)), [0, 0])
            count[0] += 1
            count[1] += int(torch.Size(shape).numel())
        lines = [f"{self.path}: {len(self.rows)} tensors taken{how}"]
        width = max(len(own) for own, _ in groups)
        other_width = max(len(other) for _, other in groups)
        lines += [
            f"  {own:<{width}} <- {other:<{other_width}}  {count:4d} tensors {numbers:12,} numbers"
            for (own, other), (count, numbers) in groups.items()
        ]
        for what, names in (("not used", self.unused), ("not in the file", self.kept)):
            if names:
                lines.append(f"  {what}: {_some(names)}")
        return "\n".join(lines)


def load_weights_file(encoder: nn.Module, path: str | Path) -> Matched:
    """Put the weights in a file into ``encoder``, which is built but not trained.

    The file is one of safetensors, a state dict of PyTorch (read with ``weights_only``, so that it
    cannot run code), or the checkpoint of a run. Names may have the prefix of a wrapper, such as
    ``module.``. Of an encoder of timm the file is matched with the network of timm, without its
    classifier; if no name of the file is known there, tensors are matched in their order, where all
    their shapes agree.

    Args:
        encoder: on any device; what the file does not have stays as it is.
        path: the file.

    Returns:
        What went where; `str` of it is a table.

    Raises:
        ValueError: the file cannot be read, or does not have every tensor of the network; the
            sentence names those that are missing or have other shapes.
    """
    path = Path(path).expanduser()
    tensors = _unwrapped(read_weights(path))
    own = {n: t for n, t in encoder.state_dict().items() if isinstance(t, Tensor)}
    if set(tensors) == set(own):  # of such an encoder, its last layer included
        return _take(path, own, tensors, {name: name for name in own}, False)
    network = encoder.backbone if isinstance(encoder, TimmEncoder) else encoder
    prefix = "backbone." if network is not encoder else ""
    targets = {n: t for n, t in own.items() if n.startswith(prefix) and _COUNTER not in n}
    if prefix:
        targets = {n: t for n, t in targets.items() if n != "head.weight" and n != "head.bias"}
    named = {n: n.removeprefix(prefix) for n in targets}
    if any(other in tensors for other in named.values()):
        missing = [other for other in named.values() if other not in tensors]
        _refuse(path, missing, "are not in it")
        return _take(path, own, tensors, named, False)
    return _take(path, own, tensors, _by_order(path, targets, tensors), True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or of a state dict of PyTorch, on the CPU, by name.

    Raises:
        ValueError: it is neither.
    """
    if not path.is_file():
        raise ValueError(f"weights must be a file, got {path}, which does not exist")
    try:
        if path.suffix == ".safetensors":
            content: Any = require("safetensors.torch", purpose="weights").load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever a reader makes of bytes that are not its own.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"weights must be a file of safetensors or a state dict of PyTorch without other "
            f"objects, but {path} cannot be read as one: {reason}"
        ) from error
    for entry in _ENTRIES:
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    found = {}
    if isinstance(content, Mapping):
        found = {str(n): t for n, t in content.items() if isinstance(t, Tensor)}
    if not found:
        raise ValueError(f"weights must hold tensors by name, but {path} has none")
    return found


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what else a checkpoint of ours holds, and without prefixes of wrappers that all names
    share."""
    if "rng.cpu" in tensors:
        tensors = of_prefix("model", tensors) or tensors
    while True:
        for wrapper in _WRAPPERS:
            if all(name.startswith(wrapper) for name in tensors):
                tensors = {name.removeprefix(wrapper): t for name, t in tensors.items()}
                break
        else:
            return tensors


def _by_order(path: Path, targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, str]:
    """The tensors of the file for the targets: as they stand, if all shapes agree."""
    others = [(n, t) for n, t in tensors.items() if _COUNTER not in n]
    pairs = dict(zip(targets, (name for name, _ in others), strict=False))
    wrong = [
        f"{own} {tuple(tensor.shape)} against {name} {tuple(found.shape)}"
        for (own, tensor), (name, found) in zip(targets.items(), others, strict=False)
        if tensor.shape != found.shape
    ]
    if len(others) < len(targets):
        wrong += [f"{name} {tuple(targets[name].shape)}" for name in list(targets)[len(others) :]]
    _refuse(path, wrong, "have no tensor of their name in it, and none of their shape in order")
    return pairs


def _take(
    path: Path,
    own: dict[str, Tensor],
    tensors: dict[str, Tensor],
    pairs: dict[str, str],
    by_order: bool,
) -> Matched:
    wrong = [
        f"{name} {tuple(own[name].shape)} against {tuple(tensors[other].shape)}"
        for name, other in pairs.items()
        if own[name].shape != tensors[other].shape
    ]
    _refuse(path, wrong, "have other shapes in it")
    with torch.no_grad():
        for name, other in pairs.items():
            own[name].copy_(tensors[other])
    taken = set(pairs.values())
    return Matched(
        path,
        tuple((n, o, tuple(own[n].shape)) for n, o in pairs.items()),
        by_order,
        tuple(n for n in tensors if n not in taken and _COUNTER not in n),
        tuple(n for n in own if n not in pairs and _COUNTER not in n),
    )


def _refuse(path: Path, names: list[str], why: str) -> None:
    if names:
        raise ValueError(
            f"weights must fit the encoder, but of those in {path} {len(names)} {why}: "
            f"{_some(tuple(names))}"
        )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _part(name: str) -> str:
    """The part of a network that a tensor belongs to: its name up to the first number."""
    pieces = name.split(".")[:-1]
    end = next((i for i, piece in enumerate(pieces) if piece.isdigit()), len(pieces))
    return ".".join(pieces[: end + 1]) or name
