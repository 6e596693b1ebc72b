"""`inshop:PATH`: In-shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016).

3,997 items train; 3,985 others are looked up, their query images in the gallery. Recall@K is
reported at 1, 10, 20, 30, 40 and 50 (as in 1904.06627, for example) or at some of these.
"""

from __future__ import annotations

from pathlib import Path

from dmlap_kernels.data.files import DataError
from dmlap_kernels.data.photo_sets import Entry, root_of, split_of, table
from dmlap_kernels.data.photos import DEFAULT_SIZE, RandomCrop
from dmlap_kernels.data.splits import Dataset

PARTITION = "Eval/list_eval_partition.txt"
PARTS = ("train", "query", "gallery")
KS = (1, 10, 20, 30, 40, 50)

_PURPOSE = "data 'inshop'"
_COLUMNS = "image_name item_id evaluation_status"


def load_in_shop(path: str | Path, image_size: int = DEFAULT_SIZE) -> Dataset:
    """Read ``Eval/list_eval_partition.txt`` and ``Img/``, where ``img.zip`` is unpacked.

    Args:
        path: the folder that holds ``Eval`` and ``Img``.
        image_size: side of the images.

    Returns:
        Dataset whose ``test`` holds the queries and whose ``gallery`` what they are looked up in.

    Raises:
        FileNotFoundError: the list or an image is missing.
        DataError: the list is broken.
    """
    root = root_of(path, "In-shop Clothes Retrieval Benchmark", PARTITION, _PURPOSE)
    file = root / PARTITION
    rows = table(file, 3, _COLUMNS, _PURPOSE, header=2)
    numbers = {item: number for number, item in enumerate(sorted({row[1] for row in rows}))}
    parts: dict[str, list[Entry]] = {name: [] for name in PARTS}
    for name, item, part in rows:
        if part not in parts:
            raise DataError(
                f"{_PURPOSE}: the evaluation_status of {name} in {file} must be one of "
                f"{', '.join(PARTS)}, got {part!r}"
            )
        parts[part].append((numbers[item], item, f"Img/{name}"))
    items = {name: {entry[1] for entry in entries} for name, entries in parts.items()}
    if alone := sorted(items["query"] ^ items["gallery"]):
        raise DataError(
            f"{_PURPOSE}: every item of the test must have images in query and in gallery, but "
            f"item {alone[0]} of {file} is only in one of them"
        )
    if both := sorted(items["train"] & items["query"]):
        raise DataError(f"{_PURPOSE}: item {both[0]} of {file} is both in train and in query")
    train, query, gallery = (split_of(parts[name], root, image_size, _PURPOSE) for name in PARTS)
    return Dataset("inshop", train, query, gallery=gallery, augment=RandomCrop(), ks=KS)
