"""Every kernel compiles for the chips it is meant for; with DMLAP_CHECK_REGISTERS=1 in the
environment, as for the Triton that is pinned, in registers and shared memory they have.

Launches are those of the shipped configurations, at their largest: both roles of rows, the longest
policies, the most statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from dmlap_kernels.backends.device.packing import Sides, pack_rows
from dmlap_kernels.backends.device.sweeps import Exponent, PairGradient, Sweeps
from dmlap_kernels.backends.triton.triton_sweeps import TritonSweeps
from tests.triton.aot import CHECKED, Launch, assert_fits, launches

CLIPPED = Exponent(2.0, 0.3, 1, -0.3)


def packed(
    distance: str = "euclidean",
    precision: str = "highest",
    refs: bool = False,
    rows: int = 200,
    features: int = 128,
    named: bool = False,
) -> Sides:
    """With ``named`` each anchor has a column that is itself."""
    x, labels = torch.randn(rows, features), torch.arange(rows) // 4
    columns = rows + 100
    y = (torch.randn(columns, features), torch.arange(columns) // 4) if refs else (None, None)
    sides = pack_rows(x, y[0], (labels, y[1]), distance, False, precision)
    return sides._replace(itself=torch.arange(rows, dtype=torch.int32) if named else None)


def vectors(sides: Sides, rows: int = 1) -> torch.Tensor:
    return torch.zeros(rows, sides.anchors)


def mined(sides: Sides) -> PairGradient:
    return PairGradient("mined", vectors(sides, 7), None, CLIPPED, CLIPPED)


CALLS: dict[str, Callable[[Sweeps, Sides], Any]] = {
    "extremes": lambda sweeps, sides: sweeps.extremes(sides, True),
    "nearest_pairs": lambda sweeps, sides: sweeps.nearest_pairs(sides, vectors(sides)[0]),
    "hinge_sums": lambda sweeps, sides: sweeps.hinge_sums(sides, *vectors(sides, 2), True),
    "logistic_sums": lambda sweeps, sides: sweeps.logistic_sums(sides, CLIPPED, CLIPPED),
    "log_sums": lambda sweeps, sides: sweeps.log_sums(sides, CLIPPED, CLIPPED, *vectors(sides, 2)),
    "pair_terms": lambda sweeps, sides: sweeps.pair_terms(
        sides, "lifted", Exponent(1.0), *vectors(sides, 3)
    ),
    "gradient-mined": lambda sweeps, sides: sweeps.gradient(sides, mined(sides)),
}


def launched(
    monkeypatch: Any, name: str, capability: int, distance: str, precision: str = "highest"
) -> Launch:
    sides = packed(distance, precision)
    (launch,) = launches(monkeypatch, lambda: CALLS[name](TritonSweeps(), sides), capability)
    return launch


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", CALLS)
def test_fits(name: str, capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    assert_fits(launched(monkeypatch, name, capability, "euclidean"), tmp_path)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("name", ["extremes", "gradient-mined"])
def test_lower_precisions_fit(name: str, precision: str, monkeypatch: Any, tmp_path: Path) -> None:
    launch = launched(monkeypatch, name, 90, "cosine", precision)
    assert_fits(launch, tmp_path, {"high": "tf32", "medium": "bf16"}[precision])


@pytest.mark.skipif(not CHECKED, reason="DMLAP_CHECK_REGISTERS=1 asks for it")
@pytest.mark.parametrize(
    ("capability", "instruction"), [(90, "wgmma.mma_async"), (100, "tcgen05.mma")]
)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", CALLS)
def test_products_are_the_newest_of_the_chip(
    name: str, distance: str, capability: int, instruction: str, monkeypatch: Any
) -> None:
    """Those of Hopper and Blackwell, which read shared memory while warps do other things."""
    ptx = launched(monkeypatch, name, capability, distance).ptx
    assert instruction in ptx and "cp.async" in ptx
    assert "mma.sync" not in ptx


@pytest.mark.parametrize("capability", [80, 100])
def test_gradients_of_products_fit(capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    assert_fits(launched(monkeypatch, "gradient-mined", capability, "cosine"), tmp_path)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_gradients_of_many_features_fit(
    distance: str, capability: int, monkeypatch: Any, tmp_path: Path
) -> None:
    """Coefficients, recomputed pairs, and a product."""
    sides = packed(distance, features=512)
    found = launches(monkeypatch, lambda: TritonSweeps().gradient(sides, mined(sides)), capability)
    names = [launch.kernel.__name__ for launch in found]
    recomputed = ["recomputed_kernel"] if distance == "euclidean" else []
    assert names == ["weights_kernel", *recomputed, "product_kernel"]
    newest = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
    for launch in found:
        instruction = "" if launch.kernel.__name__ == "recomputed_kernel" else newest
        assert_fits(launch, tmp_path, instruction)


@pytest.mark.parametrize("named", [False, True], ids=["", "self_index"])
@pytest.mark.parametrize("name", ["hinge_sums", "log_sums", "gradient-mined"])
def test_references_fit(name: str, named: bool, monkeypatch: Any, tmp_path: Path) -> None:
    """A gradient is two launches, one for each side."""
    sides = packed(refs=True, named=named)
    found = launches(monkeypatch, lambda: CALLS[name](TritonSweeps(), sides), 90)
    if name == "gradient-mined":
        ends = [launch.arguments["gradient"] for launch in found]
        assert [end.of_rows is not None for end in ends] == [True, False]
    for launch in found:
        assert_fits(launch, tmp_path)


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("name", CALLS)
def test_batches_of_every_size_share_kernels(name: str, refs: bool, monkeypatch: Any) -> None:
    """The last batch of an epoch, smaller than the others, compiles nothing."""

    def call() -> None:
        for rows in (200, 208, 17, 1):
            CALLS[name](TritonSweeps(), packed(refs=refs, rows=rows))

    sides = 2 if refs and name == "gradient-mined" else 1
    assert len(launches(monkeypatch, call, 90)) == sides


def test_panels_of_every_size_share_kernels(monkeypatch: Any) -> None:
    def call() -> None:
        for rows in (200, 208, 17, 1):
            sides = packed(rows=rows, features=512)
            TritonSweeps().gradient(sides, mined(sides))

    assert len(launches(monkeypatch, call, 90)) == 3
