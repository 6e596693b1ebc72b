"""The options of ``dmlap export``, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlap_kernels.trainer.export import Exported


def add_export(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:
    parser = commands.add_parser(
        "export", help="write the encoder of a run for use without this package"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="a .pt2 file (torch.export) or an .onnx file",
    )
    parser.set_defaults(run=run)


def describe_export(path: Path, exported: Exported) -> str:
    shape = ", ".join(map(str, exported.image_shape))
    return (
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, images (B, {shape}) of 0 to 1 to embeddings "
        f"(B, {exported.embedding_dim}) for any B; {_agreement(exported.difference)}"
    )


def _agreement(difference: float) -> str:
    tried = "tried with 1, 2 and 7 random images"
    if difference == 0:
        return f"its embeddings are those of the encoder to the last bit, {tried}"
    return (
        f"its embeddings differ from those of the encoder by at most {difference:.1e} of the "
        f"largest value, as roundings do, {tried}"
    )
