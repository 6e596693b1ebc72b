"""The options of ``dmlap embed``, and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlap_kernels.extras import require
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.embedding_files import (
    SPLITS,
    Embedded,
    check_embeddings_path,
    embed_run,
)


def add_embed(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:
    parser = commands.add_parser("embed", help="embed images with the encoder of a run")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument("--data", metavar="SOURCE", help="other data (default: those of the run)")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="which images (default: test)"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="a .npz or .parquet file"
    )
    parser.add_argument(
        "--device", metavar="DEVICE", default=defaults.DEVICE, help="torch device (default: auto)"
    )
    parser.set_defaults(run=run)


def embedded(args: argparse.Namespace) -> Embedded:
    """The embeddings that were asked for, with a progress bar on a terminal."""
    check_embeddings_path(args.out)
    tqdm = require("tqdm", purpose="the progress bar").tqdm
    with tqdm(unit="image", disable=None, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return embed_run(
            args.folder, data=args.data, split=args.split, device=args.device, advance=advance
        )
