"""`inshop:PATH`: In-shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016).

3,997 items train; 3,985 others are looked up, their query images in the gallery. Recall@K is
reported at 1, 10, 20, 30, 40 and 50 (as in 1904.06627, for example) or at some of these.
"""

from __future__ import annotations

from pathlib import Path

from dmlap_kernels.data.files import DataError, existing
from dmlap_kernels.data.photo_sets import Entry, root_of, split_of, table
from dmlap_kernels.data.photos import DEFAULT_SIZE, RandomCrop
from dmlap_kernels.data.pictures import shown
from dmlap_kernels.data.splits import Dataset

PARTITION = "Eval/list_eval_partition.txt"
PARTS = ("train", "query", "gallery")
KS = (1, 10, 20, 30, 40, 50)

_PURPOSE = "data 'inshop'"
_ARCHIVE = "In-shop Clothes Retrieval Benchmark"
_COLUMNS = "image_name item_id evaluation_status"


def _is_header(fields: list[str]) -> bool:
    """The number of images, then the names of the columns."""
    return (len(fields) == 1 and fields[0].isdecimal()) or fields[-1].lower() == _COLUMNS.split()[
        -1
    ]


def load_in_shop(path: str | Path, image_size: int = DEFAULT_SIZE) -> Dataset:
    """Read ``Eval/list_eval_partition.txt`` and ``Img/``, where ``img.zip`` is unpacked.

    The list may lack the two lines of its header.

    Args:
        path: the folder that holds ``Eval`` and ``Img``, or the list and ``img`` themselves.
        image_size: side of the images.

    Returns:
        Dataset whose ``test`` holds the queries and whose ``gallery`` what they are looked up in.

    Raises:
        FileNotFoundError: the list or an image is missing.
        DataError: the list is broken.
    """
    path = existing(path, _PURPOSE)
    flat = (path / Path(PARTITION).name).is_file() and not (path / PARTITION).is_file()
    partition = Path(PARTITION).name if flat else PARTITION
    root = path if flat else root_of(path, _ARCHIVE, PARTITION, _PURPOSE)
    file = root / partition
    rows = table(file, 3, _COLUMNS, _PURPOSE, _is_header)
    # Mirrors have unpacked the images next to the list.
    folder = "" if rows and (root / rows[0][0]).is_file() else "Img/"
    numbers = {item: number for number, item in enumerate(sorted({row[1] for row in rows}))}
    parts: dict[str, list[Entry]] = {name: [] for name in PARTS}
    for name, item, part in rows:
        if part not in parts:
            raise DataError(
                f"{_PURPOSE}: the evaluation_status of {shown(name)} in {shown(file)} must be one "
                f"of {', '.join(PARTS)}, got {shown(part)!r}"
            )
        parts[part].append((numbers[item], shown(item), f"{folder}{name}"))
    items = {name: {entry[1] for entry in entries} for name, entries in parts.items()}
    if alone := sorted(items["query"] ^ items["gallery"]):
        raise DataError(
            f"{_PURPOSE}: every item of the test must have images in query and in gallery, but "
            f"item {alone[0]} of {shown(file)} is only in one of them"
        )
    if both := sorted(items["train"] & items["query"]):
        raise DataError(
            f"{_PURPOSE}: item {both[0]} of {shown(file)} is both in train and in query"
        )
    train, query, gallery = (split_of(parts[name], root, image_size, _PURPOSE) for name in PARTS)
    return Dataset("inshop", train, query, gallery=gallery, augment=RandomCrop(), ks=KS)
