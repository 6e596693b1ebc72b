"""The embeddings of a run's images, in a file that other programs read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dmlap_kernels.data import ImageFiles, Split
from dmlap_kernels.extras import require
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.diagnosis import require_finite
from dmlap_kernels.trainer.embedding import embed, images_at_once
from dmlap_kernels.trainer.model import data_of_run, load_encoder, resolve_device

SPLITS = ("test", "train", "validation", "gallery")
SUFFIXES = (".npz", ".parquet")


class Embedded(NamedTuple):
    """A split as its encoder sees it.

    Attributes:
        embeddings: (N, D) float32.
        labels: (N,) int64, the number of each image's class.
        class_names: C names, by label.
        ids: N names: paths below the folder of the data, or the numbers of images that come in one
            file.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...]


def embed_run(
    folder: str | Path,
    *,
    data: str | None = None,
    split: str = "test",
    device: str = defaults.DEVICE,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Embed a split of the data of the run in ``folder``, as at its last checkpoint.

    Args:
        folder: what ``out`` of the trainer was; the run was given no encoder of its own.
        data: another source; default: that of the run.
        split: ``"test"``, ``"train"``, ``"validation"`` or ``"gallery"``, if the data have it.
        device: a torch device or ``"auto"``.
        advance: called with the images done so far, and with all.

    Raises:
        CheckpointError: no readable checkpoint.
        NonFiniteEmbeddings: the weights have diverged.
        ValueError: no such split, or images that do not fit the encoder.
    """
    where = resolve_device(device)
    config, loaded = data_of_run(folder, data)
    chosen: Split | None = getattr(loaded, split) if split in SPLITS else None
    if chosen is None:
        found = [name for name in SPLITS if getattr(loaded, name) is not None]
        raise ValueError(f"split must be one of {', '.join(found)} of these data, got {split!r}")
    encoder = load_encoder(folder).to(where)
    total, parts = len(chosen), []
    for rows in torch.arange(total, device="cpu").split(images_at_once(chosen, config.chunk_size)):
        parts.append(embed(encoder, chosen, rows, chunk_size=config.chunk_size).cpu())
        advance(int(rows[-1]) + 1, total)
    embeddings = torch.cat(parts).float()
    require_finite(embeddings, chosen)
    images = chosen.images
    ids = images.names if isinstance(images, ImageFiles) else chosen.ids
    if ids is None:
        ids = tuple(map(str, range(total)))
    return Embedded(embeddings.numpy(), chosen.labels.numpy(), chosen.class_names, ids)


def check_embeddings_path(path: Path) -> None:
    """Refuse, before anything is embedded, what `write_embeddings` cannot write.

    Raises:
        ValueError: another ending than ``.npz`` or ``.parquet``.
        MissingExtra: ``.parquet`` without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"out must end in {' or '.join(SUFFIXES)}, got {path}")
    if path.suffix == ".parquet":
        require("pyarrow.parquet", purpose=f"writing {path.name}", extra="parquet")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"out must be in a folder that exists, got {path}")


def write_embeddings(path: str | Path, embedded: Embedded) -> None:
    """Write to an ``.npz`` of the four fields, or to a ``.parquet`` of a row for each image.

    The columns of the latter are ``id``, ``label``, ``class`` and ``embedding``, a list of float32.

    Raises:
        MissingExtra, OSError, ValueError: it cannot be written.
    """
    path = Path(path)
    check_embeddings_path(path)
    if path.suffix == ".npz":
        content: dict[str, Any] = embedded._asdict()
        content["class_names"] = np.array(embedded.class_names)
        content["ids"] = np.array(embedded.ids)
        np.savez(path, **content)
        return
    arrow = require("pyarrow", purpose=f"writing {path.name}", extra="parquet")
    rows = arrow.array(embedded.embeddings.reshape(-1))
    width = embedded.embeddings.shape[1]
    columns = {
        "id": arrow.array(embedded.ids),
        "label": arrow.array(embedded.labels),
        "class": arrow.array([embedded.class_names[c] for c in embedded.labels.tolist()]),
        "embedding": arrow.FixedSizeListArray.from_arrays(rows, width),
    }
    require("pyarrow.parquet", purpose=f"writing {path.name}", extra="parquet").write_table(
        arrow.table(columns), path
    )
