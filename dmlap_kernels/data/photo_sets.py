"""The photograph collections of the retrieval literature, in their official layouts.

==================  ========================================================================
``cub:PATH``        CUB-200-2011, 200 species of birds (Wah et al., 2011)
``cars:PATH``       Cars196, 196 models of cars (Krause et al., 2013), in `cars`
``sop:PATH``        Stanford Online Products, 22,634 products (Song et al., 1511.06452)
==================  ========================================================================

In CUB and Cars the classes in the order of their numbers are cut in the middle: 1 to 100 of CUB and
1 to 98 of Cars train, the others test. A folder with fewer classes is cut by the same rule, the odd
class to training. Products names the classes of either side in its own files.

Recall@K is reported at 1, 2, 4 and 8 on CUB and Cars, at 1, 10, 100 and 1,000 on Products. Lists
are read at once, images when a batch asks for them. The lists may lack their headers, begin with a
byte order mark and end their lines as on Windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dmlap_kernels.data.files import DataError, existing
from dmlap_kernels.data.layouts import folder_hint
from dmlap_kernels.data.photos import DEFAULT_SIZE, ImageFiles, RandomCrop
from dmlap_kernels.data.pictures import shown
from dmlap_kernels.data.splits import Dataset, Split
from dmlap_kernels.plurals import counted

# The number of a class, its name, and an image below the root.
Entry = tuple[int, str, str]

SOP_KS = (1, 10, 100, 1000)


def load_cub(path: str | Path, image_size: int = DEFAULT_SIZE) -> Dataset:
    """Read CUB-200-2011: ``images.txt``, ``image_class_labels.txt`` and ``images/``.

    Args:
        path: the folder ``CUB_200_2011`` of the archive, or the one it lies in.
        image_size: side of the images.

    Raises:
        FileNotFoundError: a list or an image is missing.
        DataError: a list is broken.
    """
    purpose = "data 'cub'"
    root = root_of(path, "CUB_200_2011", "images.txt", purpose)
    names = _numbered(root / "images.txt", "IMAGE PATH", purpose)
    labels = _numbered(root / "image_class_labels.txt", "IMAGE CLASS", purpose)
    entries: list[Entry] = []
    for image, name in names.items():
        if image not in labels:
            raise DataError(
                f"{purpose}: {root / 'image_class_labels.txt'} has no class for image {image} "
                f"({shown(name)}) of images.txt"
            )
        number = integer(labels[image], root / "image_class_labels.txt", purpose)
        entries.append((number, shown(Path(name).parent.name), f"images/{name}"))
    return halves("cub", root, entries, image_size, purpose)


def load_sop(path: str | Path, image_size: int = DEFAULT_SIZE) -> Dataset:
    """Read Stanford Online Products: ``Ebay_train.txt``, ``Ebay_test.txt`` and the images.

    Args:
        path: the folder ``Stanford_Online_Products`` of the archive, or the one it lies in.
        image_size: side of the images.

    Raises:
        FileNotFoundError: a list or an image is missing.
        DataError: a list is broken.
    """
    purpose = "data 'sop'"
    root = root_of(path, "Stanford_Online_Products", "Ebay_train.txt", purpose)
    train, test = (
        split_of(_products(root / name, purpose), root, image_size, purpose)
        for name in ("Ebay_train.txt", "Ebay_test.txt")
    )
    return Dataset("sop", train, test, augment=RandomCrop(), ks=SOP_KS)


def _products(file: Path, purpose: str) -> list[Entry]:
    def is_header(fields: list[str]) -> bool:
        return not any(map(_is_integer, fields[:3]))

    entries: list[Entry] = []
    columns = "image_id class_id super_class_id path"
    for _, number, _, image in table(file, 4, columns, purpose, is_header):
        entries.append((integer(number, file, purpose), f"product {number}", image))
    return entries


def root_of(path: str | Path, folder: str, marker: str, purpose: str) -> Path:
    """``path``, or ``folder`` in it: whichever holds the file ``marker``."""
    path = existing(path, purpose)
    for root in (path, path / folder):
        if (root / marker).is_file():
            return root
    raise FileNotFoundError(
        f"{purpose}: neither {path / marker} nor {path / folder / marker} is a file; a folder in "
        f"the official layout is due{folder_hint(path)}"
    )


def table(
    file: Path,
    width: int,
    columns: str,
    purpose: str,
    is_header: Callable[[list[str]], bool] = lambda fields: False,
) -> list[list[str]]:
    """The lines of a list as ``width`` fields each, without its header and blank lines.

    The header are the first lines, two at most, that ``is_header`` says yes to.
    """
    try:
        # Names of images may be in any encoding: their bytes are kept.
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{purpose}: the list {shown(file)} ({columns}) is missing"
        ) from None
    except OSError as error:
        raise DataError(f"{purpose}: {shown(file)} is not a readable text file: {error}") from error
    rows: list[list[str]] = []
    headers = 0
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.strip().split(maxsplit=width - 1)
        if not fields:
            continue
        if not rows and headers < 2 and is_header(fields):
            headers += 1
            continue
        if len(fields) < width:
            raise DataError(
                f"{purpose}: line {number} of {shown(file)} must be {columns}, got {shown(line)!r}"
            )
        rows.append(fields)
    return rows


def _is_integer(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def integer(text: str, file: Path, purpose: str) -> int:
    """``text`` of ``file`` as a number, or DataError."""
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"{purpose}: {shown(file)} must number its classes, got {shown(text)!r}"
        ) from None


def split_of(entries: Sequence[Entry], root: Path, side: int, purpose: str) -> Split:
    """The split of all ``entries``, its classes in the order of their numbers."""
    numbers = sorted({entry[0] for entry in entries})
    if len(numbers) < 2:
        raise DataError(
            f"{purpose}: a list in {root} names {counted(len(numbers), 'class')}; two are due"
        )
    position = {number: label for label, number in enumerate(numbers)}
    titles = {entry[0]: entry[1] for entry in entries}
    return Split(
        ImageFiles.found(root, [entry[2] for entry in entries], side, purpose),
        torch.tensor([position[entry[0]] for entry in entries], device="cpu"),
        tuple(titles[number] for number in numbers),
    )


def _numbered(file: Path, columns: str, purpose: str) -> dict[str, str]:
    rows = table(file, 2, columns, purpose, lambda fields: not _is_integer(fields[0]))
    numbered: dict[str, str] = {}
    for image, value in rows:
        if image in numbered:
            raise DataError(f"{purpose}: {shown(file)} lists image {image} twice")
        numbered[image] = value
    return numbered


def halves(name: str, root: Path, entries: Sequence[Entry], side: int, purpose: str) -> Dataset:
    """Classes cut in the middle of their order; the first half trains."""
    both = split_of(entries, root, side, purpose)
    if both.num_classes < 4:
        raise DataError(
            f"{purpose}: {root} lists {counted(both.num_classes, 'class')}; a split into "
            "training and test classes needs at least four"
        )
    classes, middle = torch.arange(both.num_classes, device="cpu"), (both.num_classes + 1) // 2
    train, test = both.select(classes[:middle]), both.select(classes[middle:])
    return Dataset(name, train, test, augment=RandomCrop())
