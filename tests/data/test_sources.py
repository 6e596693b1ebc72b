from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmlap_kernels.data import DataError, Dataset, DataWarning, Split, load_data

pil = pytest.importorskip("PIL.Image")


def _disjoint(data: Dataset) -> bool:
    return not set(data.train.class_names) & set(data.test.class_names)


def _save(path: Path, shade: int, size: tuple[int, int] = (12, 12), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = shade if mode in ("L", "1") else (shade, shade // 2, 0)
    pil.new(mode, size, color).save(path)


def _class_folders(root: Path, classes: int = 6, images: int = 3, **options: object) -> Path:
    for c in range(classes):
        for i in range(images):
            _save(root / f"class{c}" / f"{i}.png", 40 * c + i, **options)
    return root


def test_digits() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert data.train.images.shape == (901, 1, 8, 8)
    assert data.test.images.shape == (896, 1, 8, 8)
    assert data.train.class_names == tuple("01234")
    assert data.test.class_names == tuple("56789")
    assert data.train.images.max() == 255


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_images_can_be_resized(source: str, tmp_path: Path) -> None:
    if source == "folder":
        source = f"folder:{_class_folders(tmp_path)}"
    data = load_data(source, image_size=20)
    assert data.train.images.shape[1:] == (1, 20, 20)
    assert data.train.images.dtype == torch.uint8
    batch = data.train.batch(torch.tensor([0, 1]))
    assert batch.dtype == torch.float32 and 0 <= batch.min() and batch.max() <= 1


def test_folder_splits_classes_by_seed(tmp_path: Path) -> None:
    source = f"folder:{_class_folders(tmp_path)}"
    data = load_data(source)
    assert data.train.num_classes == data.test.num_classes == 3
    assert data.train.images.shape == (9, 1, 12, 12)
    assert _disjoint(data)
    for split in (data.train, data.test):
        for c, name in enumerate(split.class_names):
            shades = split.images[split.labels == c, 0, 0, 0].tolist()
            assert sorted(shades) == [40 * int(name[-1]) + i for i in range(3)]
    assert load_data(source).train.class_names == data.train.class_names
    others = {load_data(source, seed=s).train.class_names for s in range(8)}
    assert len(others) > 1


def test_folder_with_its_own_splits(tmp_path: Path) -> None:
    _class_folders(tmp_path / "train", 3, size=(80, 40))
    _class_folders(tmp_path / "test", 2, mode="RGB", size=(70, 90))
    data = load_data(f"folder:{tmp_path}")
    # One colour image makes all of them three channels.
    assert data.train.images.shape == (9, 3, 64, 64)
    assert data.test.images.shape == (6, 3, 64, 64)


def test_omniglot_archive(tmp_path: Path) -> None:
    images = np.arange(12 * 28 * 28, dtype=np.uint8).reshape(12, 28, 28)
    labels = np.array([3, 3, 7, 7, 9, 9, 11, 11, 20, 20, 21, 21], np.int32)
    split = np.array([0] * 8 + [1] * 4, np.uint8)
    alphabet = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], np.int32)
    path = tmp_path / "omniglot28.npz"
    np.savez(path, images=images, labels=labels, split=split, alphabet=alphabet)
    for source in (f"omniglot:{path}", f"omniglot:{tmp_path}"):
        data = load_data(source)
        assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert data.train.groups.tolist() == [0, 0, 1, 1]
        assert data.test.labels.tolist() == [0, 0, 1, 1]
        assert data.train.images.shape == (8, 1, 28, 28)
        assert _disjoint(data)
    held = data.hold_out(0.4, seed=0)
    # Whole alphabets.
    assert len(set(held.train.groups.tolist())) == 1
    assert len(set(held.validation.groups.tolist())) == 1
    assert held.train.groups[0] != held.validation.groups[0]


def test_omniglot_folders(tmp_path: Path) -> None:
    for part, alphabets in (("images_background", "AB"), ("images_evaluation", "C")):
        for alphabet in alphabets:
            for character in (1, 2):
                for drawing in range(2):
                    path = tmp_path / part / alphabet / f"character0{character}" / f"{drawing}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # Ink is black in the official files.
                    image = pil.new("1", (105, 105), 1)
                    image.paste(0, (0, 0, 52, 105))
                    image.save(path)
    data = load_data(f"omniglot:{tmp_path}")
    assert data.train.class_names[2] == "B/character01"
    assert data.train.groups.tolist() == [0, 0, 1, 1]
    assert data.test.images.shape == (4, 1, 28, 28)
    assert data.test.images[0, 0, :, :13].min() == 255
    assert data.test.images[0, 0, :, 15:].max() == 0


def test_omniglot_folders_tell_what_is_left_out(tmp_path: Path) -> None:
    for part in ("images_background", "images_evaluation"):
        _class_folders(tmp_path / part / "A", classes=2)
    for name in ("readme.txt", "A/stray.png", "A/class0/notes.txt"):
        (tmp_path / "images_background" / name).write_text("hello")
    with pytest.warns(DataWarning) as told:
        load_data(f"omniglot:{tmp_path}")
    assert str(told[0].message).endswith(
        "2 beside the folders of characters (images_background/readme.txt, "
        "images_background/A/stray.png); 1 that is not a picture which Pillow reads "
        "(images_background/A/class0/notes.txt)"
    )


def test_the_shared_omniglot_file(data_dir: Path) -> None:
    path = data_dir / "omniglot28.npz"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    data = load_data(f"omniglot:{path}")
    assert (len(data.train), data.train.num_classes) == (19280, 964)
    assert (len(data.test), data.test.num_classes) == (13180, 659)
    assert len(set(data.train.groups.tolist())) == 30


@pytest.mark.parametrize(
    ("source", "error", "named"),
    [
        ("mnist", ValueError, "data must be one of glyphs, digits, omniglot:PATH, folder:PATH"),
        ("cub", ValueError, "'cub' needs a path"),
        ("omniglot", ValueError, "'omniglot' needs a path"),
        ("folder:", ValueError, "'folder' needs a path"),
        ("digits:here", ValueError, "'digits' takes no path"),
        ("folder:{}/none", FileNotFoundError, "none does not exist"),
        ("omniglot:{}/none.npz", FileNotFoundError, "none.npz does not exist"),
        ("omniglot:{}", FileNotFoundError, "images_background and images_evaluation"),
        ("folder:{}", FileNotFoundError, "holds 0 class folders"),
    ],
)
def test_bad_sources_are_named(
    source: str, error: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        load_data(source.format(tmp_path))


def test_a_small_image_size_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size must be at least 8, got 4"):
        load_data("digits", image_size=4)


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
@pytest.mark.parametrize("kind", ["folder", "omniglot"])
def test_a_broken_image_is_named(kind: str, damage: str, tmp_path: Path) -> None:
    root = tmp_path if kind == "folder" else tmp_path / "images_background"
    _class_folders(root if kind == "folder" else root / "A", size=(105, 105))
    if kind == "omniglot":
        _class_folders(tmp_path / "images_evaluation" / "B", size=(105, 105))
    victim = next(root.rglob("class2/1.png"))
    content = victim.read_bytes()
    victim.write_bytes({"text": b"hello", "cut": content[:60], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"class2/1\.png is not a readable image"):
        load_data(f"{kind}:{tmp_path}")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    _class_folders(tmp_path)
    (tmp_path / "class9").mkdir()
    with pytest.raises(FileNotFoundError, match="class9 holds no image files"):
        load_data(f"folder:{tmp_path}")


def test_half_a_split_is_named(tmp_path: Path) -> None:
    _class_folders(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="train needs .*test beside it"):
        load_data(f"folder:{tmp_path}")


def test_broken_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"broken\.npz is not a readable .npz file"):
        load_data(f"omniglot:{path}")
    images = np.zeros((4, 28, 28), np.uint8)
    np.savez(path, images=images, labels=np.arange(4))
    with pytest.raises(DataError, match="lacks the arrays alphabet, split"):
        load_data(f"omniglot:{path}")
    rest = {"alphabet": np.zeros(4, int), "split": np.zeros(4, int)}
    np.savez(path, images=images, labels=np.arange(3), **rest)
    with pytest.raises(DataError, match=r"labels in .* must be integers of shape \(4,\)"):
        load_data(f"omniglot:{path}")
    np.savez(path, images=images, labels=np.arange(4), **rest)
    with pytest.raises(DataError, match="no drawings with split = 1"):
        load_data(f"omniglot:{path}")


def test_splits_refuse_what_does_not_fit() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1])
    for arguments, error, named in (
        ((images[:, 0], labels, ("a", "b")), ValueError, "images must have shape"),
        ((images.int(), labels, ("a", "b")), TypeError, "images must be uint8 or floating"),
        ((images, labels[:3], ("a", "b")), ValueError, "labels must be int64 of shape"),
        ((images, labels, ("a", "b", "c")), ValueError, "labels must be 0 to 2"),
        ((images, labels, ("a", "b"), torch.zeros(3)), ValueError, "groups must hold one"),
    ):
        with pytest.raises(error, match=named):
            Split(*arguments)
