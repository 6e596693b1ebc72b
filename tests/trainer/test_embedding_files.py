"""``dmlap embed`` and what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from dmlap_kernels import cli, nearest
from dmlap_kernels.trainer import embed, embed_run, load_encoder, write_embeddings
from dmlap_kernels.trainer.model import data_of_run
from tests.data.photo_layouts import make_cub

PLAIN = ("--steps=2", "--classes-per-batch=4", "--samples-per-class=2", "--embedding-dim=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", "--data=digits", *PLAIN, f"--out={out}"]) == 0
    return out


def test_the_file_holds_what_the_encoder_makes_of_the_test_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npz"
    assert cli.main(["embed", str(run), f"--out={path}"]) == 0
    split = data_of_run(run)[1].test
    said = capsys.readouterr().out
    first = f"{path}: {len(split):,} embeddings of 8 numbers, {split.num_classes} classes\n"
    assert said.startswith(first) and "dmlap_kernels.nearest(rows, None, 5)" in said
    found = np.load(path)
    assert sorted(found) == ["class_names", "embeddings", "ids", "labels"]
    wanted = embed(load_encoder(run), split)
    torch.testing.assert_close(torch.from_numpy(found["embeddings"]), wanted)
    assert found["labels"].tolist() == split.labels.tolist()
    assert found["class_names"].tolist() == list(split.class_names)
    assert found["ids"][:3].tolist() == ["0", "1", "2"]
    distances, indices = nearest(torch.from_numpy(found["embeddings"]), None, 2)
    assert distances.shape == indices.shape == (len(split), 2)


def test_other_splits_and_progress(run: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = embed_run(run, split="train", advance=lambda done, total: seen.append((done, total)))
    total = len(data_of_run(run)[1].train)
    assert len(found.embeddings) == len(found.ids) == total
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(d for d, _ in seen)
    with pytest.raises(ValueError, match="one of test, train of these data, got 'gallery'"):
        embed_run(run, split="gallery")


def test_ids_of_photographs_are_their_names(tmp_path: Path) -> None:
    data = make_cub(tmp_path / "data")
    out = tmp_path / "run"
    given = ("--encoder=conv", "--image-size=16")
    assert cli.main(["train", f"--data=cub:{data}", *given, *PLAIN, f"--out={out}"]) == 0
    found = embed_run(out)
    assert all((data / "images" / name).exists() or (data / name).exists() for name in found.ids)


def test_parquet(run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    found = embed_run(run)
    write_embeddings(tmp_path / "x.parquet", found)
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert list(table) == ["id", "label", "class", "embedding"]
    assert np.array_equal(np.array(table["embedding"], dtype=np.float32), found.embeddings)
    assert table["class"] == [found.class_names[c] for c in found.labels]


@pytest.mark.parametrize(
    "out, words",
    [("x.csv", "out must end in .npz or .parquet"), ("none/x.npz", "folder that exists")],
)
def test_what_cannot_be_written_is_refused_first(
    out: str, words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["embed", str(run), f"--out={tmp_path / out}"]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["embed", str(tmp_path), f"--out={tmp_path / 'x.npz'}"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
