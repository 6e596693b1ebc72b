"""The encoder of a run in a file that needs nothing of this package: torch.export or ONNX."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmlap_kernels.extras import require
from dmlap_kernels.trainer.checkpoint import load_checkpoint
from dmlap_kernels.trainer.model import load_encoder

EXPORTS = (".pt2", ".onnx")
INPUT, OUTPUT = "images", "embeddings"
# Batches that the file is tried with; the first is exported.
_BATCHES = (2, 1, 7)
# Of the largest value of the embeddings. Other kernels round otherwise.
_TOLERANCE = 1e-3


class Exported(NamedTuple):
    """What was written.

    Attributes:
        image_shape: (channels, height, width) of an input (B, channels, height, width), float32
            from 0 to 1.
        embedding_dim: D of the outputs (B, D).
        difference: the largest between outputs of the file and of the encoder, for batches of 1, 2
            and 7 random images, as a share of the largest output.
    """

    image_shape: tuple[int, int, int]
    embedding_dim: int
    difference: float


def export_run(folder: str | Path, out: str | Path) -> Exported:
    """Write the encoder of the run in ``folder``, as at its last checkpoint, for any batch size.

    Args:
        folder: what ``out`` of the trainer was; the run was given no encoder of its own.
        out: ``.pt2``, which ``torch.export.load(out).module()`` reads, or ``.onnx``.

    Raises:
        CheckpointError: no readable checkpoint.
        MissingExtra: ``.onnx`` without onnx, onnxscript and onnxruntime.
        ValueError: another ending, no such folder, or a file that computes something else than
            the encoder; what was there before is then still there.
    """
    path = Path(out)
    if path.suffix not in EXPORTS:
        raise ValueError(f"out must end in {' or '.join(EXPORTS)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"out must be in a folder that exists, got {path}")
    if path.suffix == ".onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, purpose=f"writing {path.name}", extra="onnx")
    shape = tuple(load_checkpoint(Path(folder))[1]["image_shape"])
    encoder = load_encoder(folder)
    random = torch.Generator(device="cpu").manual_seed(0)
    batches = [torch.rand(n, *shape, generator=random, device="cpu") for n in _BATCHES]
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    write = _write_onnx if path.suffix == ".onnx" else _write_pt2
    try:
        with _quiet(), torch.no_grad():
            run = write(_program(encoder, batches[0]), part)
            wanted = [encoder(images) for images in batches]
            pairs = zip(batches, wanted, strict=True)
            difference = max(_difference(run(images), each) for images, each in pairs)
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"{path.name} would give other embeddings than the encoder, by {difference:.2g} of "
                "the largest value; it is not written"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Exported(shape, wanted[0].shape[1], difference)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own modules, which nobody here can mend."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _program(encoder: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=1)}
    return torch.export.export(encoder, (images,), dynamic_shapes=(batch,))


def _write_pt2(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    written: Any = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    written.save(path)
    onnxruntime = require("onnxruntime", purpose=f"writing {path.name}", extra="onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max())
