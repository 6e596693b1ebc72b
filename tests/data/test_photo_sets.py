"""The photograph collections: layouts, splits, laziness, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmlap_kernels.data import DataError, ImageFiles, load_data, photos
from tests.data.photo_layouts import (
    KINDS,
    LISTS,
    MAKERS,
    make_cars_today,
    make_cub,
    make_inshop,
)

NAMES = {"cub": "001.Bird_1", "cars": "Car 1", "sop": "product 1", "inshop": "id_00000001"}
KS = {
    "cub": (1, 2, 4, 8),
    "cars": (1, 2, 4, 8),
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30, 40, 50),
}


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, purpose: str) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(photos, "open_image", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_half_of_the_classes_trains(kind: str, tmp_path: Path) -> None:
    data = load_data(f"{kind}:{MAKERS[kind](tmp_path)}", image_size=16)
    assert data.name == kind
    assert (data.train.num_classes, data.test.num_classes) == (4, 4)
    assert data.train.class_names[0] == NAMES[kind]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert not set(data.train.class_names) & set(data.test.class_names)
    batch = data.train.batch(torch.tensor([0, 5, 0]))
    assert batch.shape == (3, 3, 16, 16) and batch.dtype == torch.float32
    assert 0 <= batch.min() and batch.max() <= 1
    assert torch.equal(batch[0], batch[2]) and not torch.equal(batch[0], batch[1])


def test_every_image_has_its_own_class(tmp_path: Path) -> None:
    """The order of classes is that of their numbers, not that of the lines."""
    make_cub(tmp_path, classes=11, images=2)
    for name in ("images.txt", "image_class_labels.txt"):
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(lines[::-1]))
    data = load_data(f"cub:{tmp_path}", image_size=8)
    # The odd class trains.
    assert data.train.class_names == tuple(f"{c:03}.Bird_{c}" for c in range(1, 7))
    assert data.test.class_names == tuple(f"{c:03}.Bird_{c}" for c in range(7, 12))
    for split in (data.train, data.test):
        for label, name in zip(split.labels.tolist(), split.images.names, strict=True):
            assert name.startswith(f"images/{split.class_names[label]}/")


@pytest.mark.parametrize("kind", KINDS)
def test_recall_is_reported_where_the_literature_does(kind: str, tmp_path: Path) -> None:
    data = load_data(f"{kind}:{MAKERS[kind](tmp_path)}", image_size=8)
    assert data.ks == KS[kind] == data.hold_out(0.5, seed=0).ks


def test_queries_and_gallery_of_in_shop(tmp_path: Path) -> None:
    data = load_data(f"inshop:{make_inshop(tmp_path)}", image_size=8)
    assert data.gallery.class_names == data.test.class_names
    assert len(data.gallery) == len(data.test) == 8
    assert not set(data.gallery.images.names) & set(data.test.images.names)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_before_it_is_asked_for(
    kind: str, tmp_path: Path, never_read: None
) -> None:
    data = load_data(f"{kind}:{MAKERS[kind](tmp_path)}")
    held = data.hold_out(0.5, seed=0)
    assert held.validation.num_classes == 2
    assert held.train.images.shape == (8, 3, 224, 224)
    assert len(data.train.fingerprint()) == 32
    with pytest.raises(AssertionError, match="was read"):
        held.train.batch(torch.tensor([0]))


def test_a_batch_reads_its_own_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    before = photos.open_image

    def record(path: Path, purpose: str) -> object:
        read.append(path.relative_to(tmp_path).as_posix())
        return before(path, purpose)

    data = load_data(f"cub:{make_cub(tmp_path)}", image_size=8)
    monkeypatch.setattr(photos, "open_image", record)
    data.test.batch(torch.tensor([6, 1]))
    assert sorted(read) == ["images/005.Bird_5/Bird_1.jpg", "images/006.Bird_6/Bird_2.jpg"]


def test_fingerprints_tell_other_files(tmp_path: Path) -> None:
    data = load_data(f"cub:{make_cub(tmp_path)}", image_size=8)
    again = load_data(f"cub:{tmp_path}", image_size=8)
    assert data.train.fingerprint() == again.train.fingerprint()
    other = load_data(f"cub:{tmp_path}", image_size=9)
    assert data.train.fingerprint() != other.train.fingerprint()
    file = tmp_path / "images/001.Bird_1/Bird_0.jpg"
    file.write_bytes(file.read_bytes() + b" ")
    other = load_data(f"cub:{tmp_path}", image_size=8)
    assert data.train.fingerprint() != other.train.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_missing_files_are_named(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](tmp_path)
    image = sorted(tmp_path.rglob("*.[jJ]*"))[0]
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(FileNotFoundError, match=f"{image.name} is listed but missing"):
        load_data(f"{kind}:{tmp_path}")
    image.write_bytes(content[: len(content) // 2])
    data = load_data(f"{kind}:{tmp_path}", image_size=8)
    with pytest.raises(DataError, match=f"data '{kind}': .*{image.name} is not a readable image"):
        data.train.batch(torch.arange(len(data.train)))
    (tmp_path / LISTS[kind]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{LISTS[kind]} is a file; .* official layout"):
        load_data(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
    ("kind", "file", "old", "new", "named"),
    [
        ("cub", "images.txt", "3 001.Bird_1/Bird_2.jpg", "3", "line 3 of .*IMAGE PATH, got '3'"),
        ("cub", "image_class_labels.txt", "3 1\n", "", "no class for image 3"),
        ("cub", "image_class_labels.txt", "3 1\n", "3 x\n", "must number its classes, got 'x'"),
        ("sop", "Ebay_test.txt", "19 5 1 ", "19 5 ", "line 4 of .*super_class_id"),
        ("sop", "Ebay_train.txt", "2 1 1 ", "2 a 1 ", "must number its classes, got 'a'"),
        ("inshop", LISTS["inshop"], "query", "Query", "must be one of train, query, gallery"),
        ("inshop", LISTS["inshop"], " query", " gallery", "only in one of them"),
        ("inshop", LISTS["inshop"], " train", " query", "only in one of them"),
    ],
)
def test_broken_lists_are_named(
    kind: str, file: str, old: str, new: str, named: str, tmp_path: Path
) -> None:
    MAKERS[kind](tmp_path, images=4)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=named):
        load_data(f"{kind}:{tmp_path}")


def test_a_broken_matlab_file_is_named(tmp_path: Path) -> None:
    file = MAKERS["cars"](tmp_path) / "cars_annos.mat"
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:200] + whole[300:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"cars_annos\.mat is not a MATLAB file"):
            load_data(f"cars:{tmp_path}")


@pytest.mark.parametrize("lists", ["", "devkit", "car_devkit/devkit"])
@pytest.mark.parametrize("nested", [False, True])
def test_cars_as_they_can_be_had_today(lists: str, nested: bool, tmp_path: Path) -> None:
    """Halves of the classes, each with the images of both folders."""
    make_cars_today(tmp_path, lists=lists, nested=nested)
    data = load_data(f"cars:{tmp_path}", image_size=8)
    assert data.name == "cars"
    assert data.train.class_names == ("Car 1", "Car 2", "Car 3", "Car 4")
    assert data.test.class_names == ("Car 5", "Car 6", "Car 7", "Car 8")
    for split, first in ((data.train, 1), (data.test, 5)):
        assert len(split) == 16
        for label, name in zip(split.labels.tolist(), split.images.names, strict=True):
            assert Path(name).name.startswith(f"{label + first:03}")
        assert len({Path(name).parent for name in split.images.names}) == 2
    assert data.test.batch(torch.arange(16)).shape == (16, 3, 8, 8)


def test_the_two_layouts_of_cars(tmp_path: Path) -> None:
    """The first one counts where both are; names of classes, a renamed list, what is missing."""
    root = make_cars_today(tmp_path / "stanford_cars")
    assert load_data(f"cars:{tmp_path}").train.class_names[0] == "Car 1"
    (root / "devkit" / "cars_meta.mat").unlink()
    test = root / "cars_test_annos_withlabels.mat"
    test.rename(root / "devkit" / "cars_test_annos_withlabels (1).mat")
    assert load_data(f"cars:{tmp_path}").train.class_names[0] == "class 1"
    (root / "devkit" / "cars_test_annos_withlabels (1).mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"cars_test_annos_withlabels\.mat must lie in"):
        load_data(f"cars:{tmp_path}")
    (root / "devkit" / "cars_train_annos.mat").write_bytes(b"hello")
    test.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"cars_train_annos\.mat is not a MATLAB file"):
        load_data(f"cars:{tmp_path}")
    MAKERS["cars"](root, images=2)
    assert len(load_data(f"cars:{tmp_path}").train) == 8


def test_the_first_list_beside_photographs_of_the_second_layout(tmp_path: Path) -> None:
    MAKERS["cars"](tmp_path, images=2)
    make_cars_today(tmp_path)
    assert len(load_data(f"cars:{tmp_path}").train) == 8
    (tmp_path / "car_ims").rename(tmp_path / "gone")
    assert len(load_data(f"cars:{tmp_path}").train) == 16


def _texts(root: Path) -> list[Path]:
    return sorted(root.rglob("*.txt"))


def _without_header(kind: str, file: Path, lines: list[str]) -> list[str]:
    return lines[{"sop": 1, "inshop": 2}[kind] :]


def _with_header(kind: str, file: Path, lines: list[str]) -> list[str]:
    return ["image_id class_id" if "label" in file.name else "image_id image_name", *lines]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("sop", _without_header),
        ("inshop", _without_header),
        ("inshop", lambda kind, file, lines: lines[1:]),
        ("inshop", lambda kind, file, lines: [lines[0], *lines[2:]]),
        ("cub", _with_header),
        *((kind, "windows") for kind in ("cub", "sop", "inshop")),
        *((kind, "blanks") for kind in ("cub", "sop", "inshop")),
    ],
)
def test_lists_come_in_many_spellings(kind: str, change: object, tmp_path: Path) -> None:
    """No image is lost, none is made up."""
    source = f"{kind}:{MAKERS[kind](tmp_path)}"
    before = load_data(source, image_size=8)
    for file in _texts(tmp_path):
        lines = file.read_text().splitlines()
        if change == "windows":
            file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
        elif change == "blanks":
            file.write_text("\n".join(f"  {line}\t  " for line in ["", *lines, "", " "]))
        else:
            file.write_text("\n".join(change(kind, file, lines)))
    after = load_data(source, image_size=8)
    for a, b in ((before.train, after.train), (before.test, after.test)):
        assert a.images.names == b.images.names and a.class_names == b.class_names
        assert torch.equal(a.labels, b.labels)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    MAKERS["cub"](tmp_path)
    try:
        (tmp_path / "images/001.Bird_1").rename(tmp_path / "images/001.Caf\udce9")
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    names = (tmp_path / "images.txt").read_bytes().replace(b"001.Bird_1", b"001.Caf\xe9")
    (tmp_path / "images.txt").write_bytes(names)
    data = load_data(f"cub:{tmp_path}", image_size=8)
    assert data.train.class_names[0] == "001.Caf\\xe9"
    data.train.batch(torch.arange(4))
    assert len(data.train.fingerprint()) == 32


def test_an_image_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    MAKERS["cub"](tmp_path)
    lines = (tmp_path / "images.txt").read_text().splitlines()
    (tmp_path / "images.txt").write_text("\n".join([*lines, "3 001.Bird_1/Bird_0.jpg"]))
    with pytest.raises(DataError, match=r"images\.txt lists image 3 twice"):
        load_data(f"cub:{tmp_path}")


def test_missing_images_are_counted(tmp_path: Path) -> None:
    MAKERS["sop"](tmp_path)
    for i in range(3):
        (tmp_path / f"bicycle_final/2_{i}.JPG").unlink()
    with pytest.raises(FileNotFoundError, match=r"2_0\.JPG is listed but missing \(and 2 more\)"):
        load_data(f"sop:{tmp_path}")


def test_in_shop_beside_its_list(tmp_path: Path) -> None:
    make_inshop(tmp_path)
    before = load_data(f"inshop:{tmp_path}", image_size=8)
    (tmp_path / LISTS["inshop"]).rename(tmp_path / Path(LISTS["inshop"]).name)
    (tmp_path / "Img" / "img").rename(tmp_path / "img")
    after = load_data(f"inshop:{tmp_path}", image_size=8)
    assert torch.equal(before.test.labels, after.test.labels)
    assert torch.equal(after.test.batch(torch.arange(2)), after.test.batch(torch.arange(2)))


def test_the_folder_of_the_archive_is_found(tmp_path: Path) -> None:
    make_cub(tmp_path / "CUB_200_2011")
    assert load_data(f"cub:{tmp_path}").train.num_classes == 4


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists 3 classes; .* needs at least four"):
        load_data(f"cub:{make_cub(tmp_path, classes=3)}")


def test_folds_are_quarters_of_the_classes_in_order(tmp_path: Path) -> None:
    data = load_data(f"cub:{make_cub(tmp_path, classes=18, images=2)}")
    held = [data.hold_out_fold(fold) for fold in range(4)]
    assert [h.validation.num_classes for h in held] == [3, 2, 2, 2]
    names = sum((h.validation.class_names for h in held), ())
    assert names == data.train.class_names
    for h in held:
        assert set(h.train.class_names) == set(data.train.class_names) - set(
            h.validation.class_names
        )
        assert h.test is data.test and isinstance(h.validation.images, ImageFiles)
    with pytest.raises(ValueError, match="validation_fold must be from 0 to 3, got 4"):
        data.hold_out_fold(4)
    few = load_data(f"cub:{make_cub(tmp_path / 'few')}")
    with pytest.raises(ValueError, match="validation_fold=0 of 4 training classes leaves fewer"):
        few.hold_out_fold(0)


def test_raw_pixels_are_small(tmp_path: Path) -> None:
    data = load_data(f"cub:{make_cub(tmp_path)}")
    assert data.test.pixels().shape == (16, 3 * 16 * 16)
