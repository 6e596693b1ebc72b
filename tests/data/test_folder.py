"""`folder:PATH`: layouts, what counts as a picture, what is left out, how much memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlap_kernels.data import (
    DataError,
    Dataset,
    DataWarning,
    ImageFiles,
    LayoutError,
    Split,
    folder,
    load_data,
)

pil = pytest.importorskip("PIL.Image")


_SHORT = (
    *("--steps", "1", "--method", "plain", "--classes-per-batch", "2", "--device", "cpu"),
    *("--loss-option", "backend=torch"),
)


def _save(path: Path, shade: int = 90, size: tuple[int, int] = (12, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pil.new("L", size, shade).save(path, format=None if path.suffix else "png")
    return path


def _classes(root: Path, *names: str, images: int = 2) -> Path:
    for number, name in enumerate(names):
        for i in range(images):
            _save(root / name / f"{i}.png", 20 * number + i)
    return root


def _load(path: Path, **options: object) -> Dataset:
    """Without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_data(f"folder:{path}", **options)


@pytest.mark.parametrize(
    "name",
    [
        *("a.jfif", "a.jpe", "a.JPG", "a.JPEG", "a.tga", "a.ico", "a.pcx", "a.sgi", "a.dib"),
        *("a.jp2", "a.j2k", "a.avif", "a.webp", "a.qoi", "a.Bmp", "a.TIF", "a.pbm", "a.pnm"),
        *("plain", "a.jpg_large", "a.png.1", "below/a.png", "below/further/a", "below/a.APNG"),
    ],
)
def test_what_pillow_reads_is_read(name: str, tmp_path: Path) -> None:
    _classes(tmp_path, "a", "b", "c", "d")
    path = tmp_path / "a" / name
    suffixes = {"a.jpg_large": "jpeg", "a.png.1": "png", "plain": "png", "a": "png"}
    kind = suffixes.get(path.name) or {"apng": "png", "pbm": "ppm", "pnm": "ppm"}.get(
        path.suffix[1:].lower(), path.suffix[1:].lower()
    )
    extensions = pil.registered_extensions()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        image = pil.new("RGB", (16, 16), (200, 100, 50))
        image.save(path, format=extensions.get(f".{kind}", kind))
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow does not write {kind}: {error}")
    data = _load(tmp_path, image_size=16)
    split = data.train if "a" in data.train.class_names else data.test
    images = split.images[split.labels == split.class_names.index("a")]
    assert len(images) == 3
    pixel = torch.tensor([200, 100, 50])
    assert any((image[:, 5, 5].int() - pixel).abs().max() <= 8 for image in images)


def test_what_is_left_out_is_told_once(tmp_path: Path) -> None:
    _classes(tmp_path, "a", "b", "c", "d")
    (tmp_path / "labels.csv").write_text("a,b")
    for i in range(5):
        (tmp_path / "b" / f"note{i}.txt").write_text("hello\nworld\n")
    (tmp_path / "b" / "film.mpg").write_bytes(b"\0\0\1\xb3" + bytes(100))
    (tmp_path / "c" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(DataWarning) as told:
        data = load_data(f"folder:{tmp_path}")
    assert [str(w.message) for w in told] == [
        f"data 'folder': left out of {tmp_path}: 6 that are not pictures which Pillow reads "
        "(b/film.mpg, b/note0.txt, b/note1.txt, ...); 1 that is not a file (c/gone.png); 1 beside "
        "the class folders (labels.csv)"
    ]
    assert told[0].filename == __file__
    assert len(data.train) + len(data.test) == 8


def test_litter_is_left_out_without_a_word(tmp_path: Path) -> None:
    _classes(tmp_path, "a", "b", "c", "d", "__MACOSX", ".hidden")
    for name in ("a/.DS_Store", "a/Thumbs.db", "desktop.ini", "b/.x.png", "b/__MACOSX/._0.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("litter")
    data = _load(tmp_path)
    assert sorted(data.train.class_names + data.test.class_names) == ["a", "b", "c", "d"]
    assert len(data.train) + len(data.test) == 8


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _classes(tmp_path, "a", "b", "c")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    elsewhere = _classes(tmp_path / ".elsewhere", "d")
    (tmp_path / "d").symlink_to(elsewhere / "d")
    data = _load(tmp_path)
    assert len(data.train) + len(data.test) == 8


@pytest.mark.parametrize(
    ("folders", "train", "test", "validation"),
    [
        (("train", "test"), "train", "test", None),
        (("Train", "Test"), "Train", "Test", None),
        (("TRAINING", "TESTING"), "TRAINING", "TESTING", None),
        (("train", "test", "val"), "train", "test", "val"),
        (("Train", "test", "Validation"), "Train", "test", "Validation"),
        (("train", "val"), "train", "val", None),
        (("Training", "VALID"), "Training", "VALID", None),
    ],
)
def test_splits_have_many_spellings(
    folders: tuple[str, ...], train: str, test: str, validation: str | None, tmp_path: Path
) -> None:
    for number, name in enumerate(folders):
        _classes(tmp_path / name, f"{name}-a", f"{name}-b", images=2 + number)
    data = _load(tmp_path)
    for split, name in ((data.train, train), (data.test, test), (data.validation, validation)):
        if name is None:
            assert split is None
        else:
            assert split.class_names == (f"{name}-a", f"{name}-b")
            assert len(split) == 2 * (2 + folders.index(name))


def test_what_lies_beside_splits_is_told(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        _classes(tmp_path / name, "a", "b")
    _save(tmp_path / "train" / "loose.png")
    with pytest.warns(DataWarning) as told:
        load_data(f"folder:{tmp_path}")
    assert str(told[0].message).endswith(
        "1 beside the splits (extra/); 1 beside the class folders (train/loose.png)"
    )


def test_a_split_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name in ("train", "training", "test"):
        _classes(tmp_path / name, "a", "b")
    with pytest.raises(DataError, match=r"train and .*training are both the train split"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("alone", ["Train", "test", "val"])
def test_half_a_split_is_named(alone: str, tmp_path: Path) -> None:
    _classes(tmp_path / alone, "a", "b")
    with pytest.raises(FileNotFoundError, match=rf"{alone} needs .*t\w+ beside it"):
        load_data(f"folder:{tmp_path}")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = _load(_classes(tmp_path, "train", "bus", "car", "ship"))
    assert "train" in data.train.class_names + data.test.class_names


def test_own_validation_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    for name in ("train", "test", "val"):
        _classes(tmp_path / name, *"abcd")
    data = _load(tmp_path)
    for hold_out in (lambda: data.hold_out(0.5, seed=0), lambda: data.hold_out_fold(0)):
        with pytest.raises(ValueError, match="the 4 validation classes that the data have already"):
            hold_out()


def test_all_empty_class_folders_are_counted(tmp_path: Path) -> None:
    _classes(tmp_path, "a", "b", "c", "d")
    for name in ("e", "f", "g"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"e holds no image files \(and 2 more such"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b")])
def test_a_folder_without_a_layout_is_shown_those_that_are_taken(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    _save(tmp_path / "loose.png")
    _classes(tmp_path, *names)
    with pytest.raises(LayoutError) as told:
        load_data(f"folder:{tmp_path}")
    first, *tree = str(told.value).splitlines()
    noun = "class folder" if len(names) == 1 else "class folders"
    assert f"{len(names)} {noun}; " in first
    assert any("PATH/train/cat/1.jpg" in line and "PATH/test/" in line for line in tree)


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_unreadable_files_are_named_and_can_be_left_out(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header that is none, an empty file, and pictures that are cut off after their headers."""
    _classes(tmp_path, *"abcdef", images=3)
    (tmp_path / "a" / "0.png").write_text("hello")
    (tmp_path / "d" / "1.png").write_bytes(b"")
    for kind in ("jpg", "png"):
        cut = tmp_path / "b" / f"9.{kind}"
        pil.effect_noise((64, 64), 90).save(cut)
        cut.write_bytes(cut.read_bytes()[:1000])
    for i in range(3):  # a class of which nothing is left
        (tmp_path / "f" / f"{i}.png").write_bytes(b"x")
    bad = ["a/0.png", "b/9.jpg", "b/9.png", "d/1.png", "f/0.png", "f/1.png", "f/2.png"]
    if not in_memory:
        monkeypatch.setattr(folder, "_IN_MEMORY", 0)
    with pytest.raises(DataError) as told:
        load_data(f"folder:{tmp_path}")
    first, *lines = str(told.value).splitlines()
    assert "7 of 20 files" in first and "--drop-unreadable" in first
    assert [line.split(":")[0].strip() for line in lines] == bad
    with pytest.warns(DataWarning, match="7 that are not readable images") as warned:
        data = load_data(f"folder:{tmp_path}", drop_unreadable=True)
    assert len(warned) == 1
    assert sorted(data.train.class_names + data.test.class_names) == list("abcde")
    ids = []
    for split in (data.train, data.test):
        names = split.images.names if isinstance(split.images, ImageFiles) else split.ids
        assert names is not None
        told_by_name = [split.class_names[label] for label in split.labels.tolist()]
        assert [name.split("/")[0] for name in names] == told_by_name
        ids += names
        assert split.batch(torch.arange(len(split))).isfinite().all()
    assert len(ids) == 13 and not set(ids) & set(bad)


def test_unreadable_files_are_of_folders_alone() -> None:
    with pytest.raises(ValueError, match="drop_unreadable can only be given with data folder:"):
        load_data("digits", drop_unreadable=True)


def test_a_complete_jpeg_without_its_end_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _classes(tmp_path, *"abcd")
    path = _save(tmp_path / "a" / "9.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes() + bytes(1000))  # as some cameras add
    monkeypatch.setattr(folder, "_IN_MEMORY", 0)
    data = _load(tmp_path)
    assert len(data.train) + len(data.test) == 9


def test_what_was_meant_by_a_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_classes(tmp_path, "mine/a", "mine/b"))
    (tmp_path / "mine.zip").write_bytes(b"PK")
    for given, hint in (
        ("mine", "a folder of pictures is given as folder:mine"),
        ("mine.zip", "unpack mine.zip first, and give its folder: folder:mine"),
        ("folder:mine.zip", "first, and give its folder: folder:mine"),
        ("cars:mine", "are given as folder:mine"),
        ("cub:mine", "are given as folder:mine"),
    ):
        with pytest.raises((ValueError, OSError), match=hint):
            load_data(given)
    with pytest.raises(ValueError, match=r"got 'nothing'$"):
        load_data("nothing")


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    try:
        _classes(tmp_path, "caf\udce9", "b", "c", "d")
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    data = _load(tmp_path)
    names = data.train.class_names + data.test.class_names
    assert "caf\\xe9" in names
    "".join(names).encode()
    (tmp_path / "caf\udce9" / "0.png").write_text("broken")
    with pytest.raises(DataError, match=r"caf\\xe9/0\.png is not a readable image"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("xyz", "3 classes never seen in training, 6 images:"),
        ("abc", "3 classes, all of them also in training, 6 images:"),
        ("aby", "3 classes, 2 of them also in training (a, b), 6 images:"),
    ],
)
def test_classes_in_both_splits_are_not_called_unseen(
    test: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("matplotlib")
    from dmlap_kernels.cli import main
    from dmlap_kernels.trainer.results import METRICS_FILE

    _classes(tmp_path / "data" / "train", *"abcd", images=3)
    _classes(tmp_path / "data" / "test", *test)
    assert list(_load(tmp_path / "data").seen_classes) == sorted(set(test) & set("abcd"))
    arguments = ["--data", f"folder:{tmp_path / 'data'}", "--out", str(tmp_path / "run")]
    assert main(["train", *arguments, *_SHORT]) == 0
    output = capsys.readouterr().out
    assert said in output
    assert ("never seen" in output) == (test == "xyz")
    assert METRICS_FILE in os.listdir(tmp_path / "run")


def test_what_is_left_out_is_one_line_of_the_command(tmp_path: Path) -> None:
    _classes(tmp_path, "a", "b")
    (tmp_path / "a" / "notes.txt").write_text("hello")
    _classes(tmp_path, "c", "d")
    done = subprocess.run(
        [sys.executable, "-m", "dmlap_kernels", "train", "--data", f"folder:{tmp_path}", *_SHORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if "left out" in line]
    assert told == [
        f"dmlap: data 'folder': left out of {tmp_path}: 1 that is not a picture which Pillow reads "
        "(a/notes.txt)"
    ]
    assert "DataWarning" not in done.stderr


# 16 photographs of 12 megapixels: 36 MB each when decoded.
_MEMORY = """
import resource, sys
from dmlap_kernels.data import load_data
import PIL.Image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

load_data("folder:small")
before = peak()
data = load_data("folder:large")
print((peak() - before) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in kilobytes")
@pytest.mark.parametrize(("kind", "bound"), [("jpg", 40), ("png", 320)])
def test_pictures_are_decoded_one_by_one(kind: str, bound: int, tmp_path: Path) -> None:
    """All of them at once are 580 MB."""
    _classes(tmp_path / "small", *"abcd")
    image = pil.new("RGB", (4000, 3000), (90, 20, 30))
    for c in "abcd":
        (tmp_path / "large" / c).mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "large" / c / f"{i}.{kind}"
            if (c, i) == ("a", 0):
                image.save(path, **({"compress_level": 1} if kind == "png" else {}))
            else:
                os.link(tmp_path / "large" / "a" / f"0.{kind}", path)
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < bound


def test_large_folders_stay_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are the same, and so are the channels."""
    for c, shade in zip("abcd", (0, 60, 120, 180), strict=True):
        for i in range(2):
            array = np.arange(30 * 20, dtype=np.uint32).reshape(20, 30) * (i + 1) + shade
            (tmp_path / c).mkdir(exist_ok=True)
            pil.fromarray((array % 256).astype(np.uint8)).save(tmp_path / c / f"{i}.png")
    here = _load(tmp_path, image_size=16)
    monkeypatch.setattr(folder, "_IN_MEMORY", 8 * 16 * 16 - 1)
    there = _load(tmp_path, image_size=16)
    rows = torch.arange(4)
    for a, b in ((here.train, there.train), (here.test, there.test)):
        assert isinstance(b.images, ImageFiles) and isinstance(a, Split)
        assert b.images.shape == tuple(a.images.shape) == (4, 1, 16, 16)
        assert torch.equal(a.batch(rows), b.batch(rows))
        assert a.class_names == b.class_names and torch.equal(a.labels, b.labels)


def test_the_shared_photographs_are_read(data_dir: Path, tmp_path: Path) -> None:
    archive = data_dir / "cars196-128.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} does not exist")
    import zipfile

    with zipfile.ZipFile(archive) as content:
        chosen = [n for n in content.namelist() if n.split("/")[1] in ("001", "002", "099", "100")]
        content.extractall(tmp_path, chosen)
    data = _load(tmp_path)
    assert (data.train.class_names, data.test.class_names) == (("001", "002"), ("099", "100"))
    assert data.train.images.shape[1:] == (3, 64, 64) and not data.seen_classes


def test_a_home_that_is_not_known_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="'folder': ~nobody-of-this-name/x does not exist"):
        load_data("folder:~nobody-of-this-name/x")
