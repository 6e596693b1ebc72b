"""Predictions: what is counted, the model, and what a page says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import counts, predict
from benchmarks.batch import Absent
from benchmarks.counts import Cost

PAGE = Path(__file__).parents[2] / "docs" / "predictions.md"


def test_operators_are_counted() -> None:
    x, y = torch.ones(3, 5), torch.ones(5, 7)
    with counts.Counted() as seen:
        _ = (x @ y).T  # a view costs nothing
        torch.addmm(torch.zeros(7), x, y)
        torch.mm(x, y, out=torch.empty(3, 7))
    assert seen.total.flops == 3 * 2 * 3 * 5 * 7
    assert seen.total.operations == 4  # and zeros
    assert seen.total.bytes == 4 * (3 * (15 + 35 + 21) + 2 * 7)
    assert counts.size_of(torch.ones(1, 9).expand(100, 9)) == 36


def test_the_torch_backend_takes_its_products() -> None:
    """Forward one, backward two; one with both sides of a pair where there are no references."""
    pairs = 2.0 * 256 * 256 * 32
    assert counts.of_backend("nt-xent", "torch", 256, 32).flops == 2 * pairs
    proxies = counts.of_backend("proxy-nca", "torch", 256, 32)
    assert proxies.flops == 3 * pairs / 4
    assert proxies.kernels == 0 and proxies.operations > 20


def test_launches_are_counted_and_not_run() -> None:
    pytest.importorskip("triton")
    found = counts.of_backend("proxy-nca", "triton", 512, 32)
    assert 0 < found.kernels < found.operations
    assert found.fused + found.flops > 0


def test_plain_pytorch_grows_by_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MOST_ROWS", 64)
    small = predict.cost.__wrapped__("sup-con", "eager", 64, 16)
    large = predict.cost.__wrapped__("sup-con", "eager", 640, 16)
    assert large.flops == pytest.approx(100 * small.flops)
    assert 60 * small.bytes < large.bytes < 101 * small.bytes
    assert large.operations == small.operations > 20


def test_what_cannot_be_counted_says_so() -> None:
    with pytest.raises(Absent, match="made in C"):
        counts.of_backend("nt-xent", "cuda", 128, 128)


def test_the_longer_of_host_and_device() -> None:
    chip = predict.Chip(float32=1e12, tf32=6e12, memory=1e12, source="")
    assert predict.seconds(Cost(operations=100), chip) == pytest.approx(100 * predict.HOST)
    floor = 100 * predict.FLOOR
    for cost, seconds in (
        (Cost(100, bytes=1e12), 1.0),
        (Cost(100, flops=2e12), 2.0),
        (Cost(100, fused=2e12), 1.0),  # three products of TF32
    ):
        assert predict.seconds(cost, chip) == pytest.approx(floor + seconds)
    assert predict.seconds(Cost(100, flops=6e12), chip, "high") == pytest.approx(floor + 1)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(["--shapes", "64x16", "--ops", "sup-con", "nearest", "--chips", "H100"])
    text = capsys.readouterr().out
    assert "**Nothing on this page was measured.**" in text
    assert "## 64 rows of 16 features" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| sup-con |"))
    assert row.count("/") == 4  # three counts, three times
    for words in predict.LEFT_OUT:
        assert f"- {words}." in text


def test_the_page_is_of_this_command() -> None:
    text = PAGE.read_text()
    assert text.startswith("# Predictions for GPUs\n\n**Nothing on this page was measured.**")
    for name, chip in predict.CHIPS.items():
        assert f"| {name} | " in text and chip.source in text
    for rows, features in predict.SHAPES:
        assert f"## {rows:,} rows of {features:,} features" in text
    ops = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if " / " in line}
    assert len(ops & {*predict.OPS}) > 20
