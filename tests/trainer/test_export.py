"""``dmlap export``: files that compute what the encoder computes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from dmlap_kernels import cli
from dmlap_kernels.trainer import export, export_run, load_encoder

PLAIN = ("--steps=2", "--classes-per-batch=4", "--samples-per-class=2", "--embedding-dim=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", "--data=digits", *PLAIN, f"--out={out}"]) == 0
    return out


def _needs(suffix: str) -> None:
    if suffix == ".onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_file_computes_the_same_for_any_batch(
    suffix: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _needs(suffix)
    path = tmp_path / f"encoder{suffix}"
    assert cli.main(["export", str(run), f"--out={path}"]) == 0
    said = capsys.readouterr().out
    assert "images (B, 1, 8, 8) of 0 to 1 to embeddings (B, 8) for any B" in said
    difference = re.search(r"at most (\S+) of the largest value", said)
    assert "to the last bit" in said or (difference and float(difference[1]) < 1e-4)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    images = torch.rand(33, 1, 8, 8)
    with torch.no_grad():
        wanted = load_encoder(run)(images)
    if suffix == ".pt2":
        found = torch.export.load(path).module()(images)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_an_encoder_of_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    out = tmp_path / "run"
    encoder = ("--encoder=timm:test_efficientnet.r160_in1k", "--image-size=32")
    assert cli.main(["train", "--data=digits", *PLAIN, *encoder, f"--out={out}"]) == 0
    assert export_run(out, tmp_path / "encoder.pt2").difference < 1e-4


def test_a_file_that_differs_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.pt2"
    path.write_bytes(b"before")
    write = export._write_pt2

    def wrong(*args: object) -> object:
        module = write(*args)  # type: ignore[arg-type]
        return lambda images: module(images) + 0.01

    monkeypatch.setattr(export, "_write_pt2", wrong)
    with pytest.raises(ValueError, match="other embeddings than the encoder"):
        export_run(run, path)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_a_sentence(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for folder, out, said in (
        (run, tmp_path / "x.onnx", "writing x.onnx needs onnx, which is not installed"),
        (run, tmp_path / "x.bin", "out must end in .pt2 or .onnx"),
        (run, tmp_path / "none" / "x.pt2", "out must be in a folder that exists"),
        (tmp_path, tmp_path / "x.pt2", "it is not the folder of a run"),
    ):
        assert cli.main(["export", str(folder), f"--out={out}"]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
