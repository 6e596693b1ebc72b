"""From measured times to the orders of ``auto``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import order
from benchmarks.candidates import LOSSES
from benchmarks.gpu import NO_TIME
from dmlap_kernels.backends import orders
from dmlap_kernels.backends.device.families import FAMILIES

TABLE = {
    "about": "words",
    "cuda": {"rule": ["torch"], "measured": {"old": {"circle": [{"order": ["torch"]}]}}},
    "other": {"rule": ["torch"], "measured": {}},
}


def results(op: str, shape: tuple[int, int], **seconds: float | None) -> list[dict[str, Any]]:
    """Both ways, and forward, whose times turn the order around; None: no time was left."""
    at = {"op": op, "rows": shape[0], "features": shape[1]}
    found = []
    for name, value in seconds.items():
        if value is None:
            found.append(at | {"candidate": name, "absent": NO_TIME})
            continue
        found.append(at | {"candidate": name, "way": "both", "seconds": value})
        found.append(at | {"candidate": name, "way": "forward", "seconds": 1 / value})
    return found


def measured(*several: list[dict[str, Any]]) -> dict[str, Any]:
    """The new entries of the chip."""
    content = {
        "type": "cuda",
        "device": "new",
        "results": [one for some in several for one in some],
    }
    table = order.proposed(content, TABLE)
    assert table["cuda"]["measured"]["old"] == TABLE["cuda"]["measured"]["old"]
    assert table["cuda"]["rule"] == ["torch"]
    return table["cuda"]["measured"]["new"]


def test_the_fastest_first_and_each_shape_its_own() -> None:
    found = measured(
        results("sup-con", (100, 64), cuda=3.0, triton=2.0, torch=1.0),
        results("sup-con", (10000, 64), cuda=1.0, triton=2.0, torch=9.0),
        results("sup-con", (10000, 1024), cuda=2.0, triton=1.0, torch=9.0),
        results("nt-xent", (100, 64), cuda=1.0, triton=2.0, torch=3.0, eager=0.1),
    )
    assert found == {
        "nt_xent": [{"order": ["cuda", "triton", "torch"]}],
        "sup_con": [
            {"rows": 1000, "order": ["torch", "triton", "cuda"]},
            {"features": 256, "order": ["cuda", "triton", "torch"]},
            {"order": ["triton", "cuda", "torch"]},
        ],
    }


def test_neighbours_with_one_order_are_one_entry() -> None:
    found = measured(
        results("circle", (100, 64), cuda=1.0, torch=2.0),
        results("circle", (100, 128), cuda=2.0, torch=1.0),
        results("circle", (400, 128), cuda=2.0, torch=1.0),
        results("circle", (1600, 64), cuda=2.0, torch=1.0),
        results("circle", (1600, 256), cuda=1.0, torch=2.0),
    )["circle"]
    assert found == [
        {"rows": 200, "features": 90, "order": ["cuda", "torch"]},
        {"rows": 800, "order": ["torch", "cuda"]},
        {"features": 128, "order": ["torch", "cuda"]},
        {"order": ["cuda", "torch"]},
    ]


def test_ties_go_to_the_rule() -> None:
    near = measured(results("circle", (100, 64), cuda=1.0, triton=1.04, torch=1.049))
    assert near["circle"] == [{"order": ["torch", "cuda", "triton"]}]
    far = measured(results("circle", (100, 64), cuda=1.0, triton=1.04, torch=1.06))
    assert far["circle"] == [{"order": ["cuda", "torch", "triton"]}]


def test_ops_of_one_loss_are_averaged() -> None:
    """By ratio: neither setting counts for more because it takes longer."""
    found = measured(
        results("contrastive-all", (100, 64), cuda=1.0, torch=4.0),
        results("contrastive-2%", (100, 64), cuda=300.0, torch=100.0),
        results("nearest", (100, 64), cuda=1.0, torch=2.0),
        results("hard-classes", (100, 64), cuda=1.0, torch=1.5, triton=0.1),
    )
    assert found["contrastive"] == [{"order": ["cuda", "torch"]}]
    # Searches have no backward: what they took is 1 / seconds here.
    assert found["search"] == [{"order": ["torch", "cuda"]}]


def test_what_was_not_finished_says_nothing() -> None:
    found = measured(
        results("circle", (100, 64), cuda=1.0, torch=2.0),
        results("circle", (900, 64), cuda=None, torch=2.0, triton=1.0),
        results("sup-con", (900, 64), torch=2.0),
    )
    assert found == {"circle": [{"order": ["cuda", "torch"]}]}
    with pytest.raises(SystemExit, match="no op was measured on two backends"):
        measured(results("sup-con", (900, 64), torch=2.0))


def test_rows_of_proxies_are_those_of_as_many_pairs() -> None:
    found = measured(
        results("proxy-nca", (400, 64), cuda=1.0, torch=2.0),  # against 100 proxies
        results("proxy-nca", (40000, 64), cuda=2.0, torch=1.0),
    )["proxy_nca"]
    assert found[0]["rows"] == 2000


def test_every_op_is_of_a_loss() -> None:
    assert {order.loss_of(op) for op in LOSSES} == set(FAMILIES)
    assert order.loss_of("lifted-structure-original") == "lifted_structure_original"


def test_the_table_in_the_package_is_as_it_would_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert orders.PATH.read_text() == order.dumps(orders.shipped())
    monkeypatch.setattr(orders, "PATH", tmp_path / "order.json")
    monkeypatch.setattr(orders, "shipped", lambda: TABLE)
    times = results("circle", (100, 64), cuda=1.0, torch=2.0)
    content = {"type": "cuda", "device": "new", "results": times}
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    order.main([str(tmp_path / "gpu.json"), "--write"])
    written = json.loads(orders.PATH.read_text())
    assert written == order.proposed(content, TABLE)
    assert orders.entries(written, "circle", "cuda", "new")[0].names == ("cuda", "torch")
    (tmp_path / "cpu.json").write_text(json.dumps({"benchmarks": []}))
    with pytest.raises(SystemExit, match=r"cpu\.json has no times of backends by name"):
        order.main([str(tmp_path / "cpu.json")])
