"""What ``auto`` takes: measured orders by chip, op and shape, else rules; and its reasons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmlap_kernels import fused_nt_xent_loss, info, nearest
from dmlap_kernels.backends import orders, registry
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairSpec

NT_XENT = PairSpec("nt_xent", (0.1,))
# Three sizes, told apart by rows, and of the middle one two widths.
MEASURED = [
    {"rows": 10, "order": ["torch"]},
    {"rows": 100, "features": 16, "order": ["first"]},
    {"rows": 100, "order": ["torch"]},
    {"order": ["second", "first"]},
]


class Named:
    """Takes everything but float64."""

    def __init__(self, name: str) -> None:
        self.name = name

    def unavailable(self) -> str | None:
        return None

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        return "no float64" if dtype == torch.float64 else None


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts entries of ops for this CPU into the table, and backends to choose from."""
    monkeypatch.setenv("DMLAP_SELFCHECK", "0")
    for name in ("first", "second"):
        monkeypatch.setitem(registry.backends(), name, Named(name))

    def put(**ops: list[dict[str, Any]]) -> None:
        content = copy.deepcopy(orders.shipped())
        content["cpu"]["measured"] = {"cpu": ops}
        monkeypatch.setattr(orders, "shipped", lambda: content)
        monkeypatch.setattr(registry, "_chosen", {})

    return put


def test_rules() -> None:
    def names(op: str, device_type: str, chip: str) -> list[tuple[str, ...]]:
        return [entry.names for entry in orders.entries(orders.shipped(), op, device_type, chip)]

    # Whatever was measured on other chips.
    rule = ("triton", "cuda", "torch")
    assert all(set(found) == set(rule) for found in names("nt_xent", "cuda", "some chip"))
    assert names("a loss of tomorrow", "cuda", "some chip") == [rule]
    assert names(orders.SEARCH, "cpu", "cpu") == [("cpu", "torch")]
    assert names("nt_xent", "xpu", "xpu") == [("torch",)]


def test_a_chip_that_was_not_measured_goes_by_one_that_was() -> None:
    table = {
        "other": {"rule": ["b"], "measured": {}},
        "cuda": {
            "rule": ["a", "b"],
            "measured": {
                "one": {"circle": [{"order": ["b", "a"]}]},
                "two": {"circle": [{"order": ["a", "b"]}], "margin": [{"order": ["b", "a"]}]},
            },
        },
    }

    def found(op: str, chip: str) -> tuple[tuple[str, ...], str]:
        (entry,) = orders.entries(table, op, "cuda", chip)
        return entry.names, entry.source

    assert found("circle", "two") == (("a", "b"), "measured on two")
    assert found("circle", "three") == (
        ("b", "a"),
        "measured on one, as circle was not on three",
    )
    assert found("margin", "one") == (("b", "a"), "measured on two, as margin was not on one")
    assert found("sup_con", "one")[0] == ("a", "b")


def test_the_table_names_backends_and_ends_with_one_that_runs() -> None:
    content = orders.shipped()
    for device in set(content) - {"about"}:
        chips = {"unknown": {"nt_xent": []}} | content[device]["measured"]
        for chip, ops in chips.items():
            for op in ops:
                for entry in orders.entries(content, op, device, chip):
                    assert set(entry.names) <= {*registry.NAMES} - {"auto"}
                    assert "torch" in entry.names


@pytest.mark.parametrize(
    ("shape", "references", "taken"),
    [
        ((10, 99), None, "torch"),
        ((11, 16), None, "first"),
        ((11, 17), None, "torch"),
        ((100, 16), None, "first"),
        ((101, 16), None, "second"),
        ((1, 16), 100, "torch"),  # as many pairs as ten rows have
        ((1, 16), 101, "first"),
        ((101, 16), 1, "first"),
        ((1, 16), 10001, "second"),
        ((0, 16), None, "torch"),
    ],
)
def test_the_shape_decides(
    measured: Callable[..., None], shape: tuple[int, int], references: int | None, taken: str
) -> None:
    measured(nt_xent=MEASURED)
    y = None if references is None else torch.empty(references, shape[1])
    for _ in range(2):  # found, and remembered
        assert registry.choose("auto", NT_XENT, torch.empty(shape), y).name == taken
    assert registry.explain(NT_XENT, torch.empty(shape), y).taken == taken


def test_beyond_the_entries_and_of_other_ops_the_rule_decides(
    measured: Callable[..., None],
) -> None:
    measured(nt_xent=MEASURED[:1], search=[{"order": ["second"]}])
    rule = orders.shipped()["cpu"]["rule"]
    small, large = torch.empty(9, 2), torch.empty(90, 2)
    assert registry.choose("auto", NT_XENT, small).name == "torch"
    assert registry.explain(NT_XENT, large).order == tuple(rule)
    assert registry.explain(NT_XENT._replace(loss="sup_con"), small).order == tuple(rule)
    assert registry.choose("auto", None, small).name == "second"


def test_what_refuses_a_call_is_passed_over_and_the_rule_follows(
    measured: Callable[..., None],
) -> None:
    measured(nt_xent=[{"order": ["second", "first"]}])
    why = registry.explain(NT_XENT, torch.empty(9, 2, dtype=torch.float64))
    assert why.taken in orders.shipped()["cpu"]["rule"]
    assert why.passed_over["second"] == why.passed_over["first"] == "no float64"


def test_calls_whose_shape_makes_no_difference_do_not_look_at_it(
    measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(nt_xent=MEASURED, sup_con=[{"rows": 7, "order": ["torch"]}, {"order": ["torch"]}])
    looked: list[object] = []
    at = registry._ByShape.at
    monkeypatch.setattr(registry._ByShape, "at", lambda *a: (looked.append(a), at(*a))[1])
    x = torch.empty(5, 2)
    registry.choose("auto", NT_XENT._replace(loss="circle"), x)
    registry.choose("auto", NT_XENT._replace(loss="sup_con"), x)
    assert not looked
    registry.choose("torch", NT_XENT, x)
    assert not looked
    registry.choose("auto", NT_XENT, x)
    assert looked


def test_losses_and_searches_go_by_it(
    measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [{"rows": 10, "order": ["torch"]}, {"order": ["first"]}]
    measured(nt_xent=entries, search=entries)
    asked: list[str] = []
    backend = registry.backends()["torch"]
    for name in ("forward", "backward", "nearest"):
        real = getattr(backend, name)
        monkeypatch.setattr(
            backend, name, lambda *a, real=real, name=name: (asked.append(name), real(*a))[1]
        )
    x, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 0, 1, 1])
    references, names = torch.randn(30, 3), torch.arange(30) % 2
    fused_nt_xent_loss(x, labels).backward()
    nearest(x.detach(), k=1)
    assert asked == ["forward", "backward", "nearest"]
    for call in (
        lambda: fused_nt_xent_loss(x, labels, references, names),
        lambda: nearest(x.detach(), references, k=1),
    ):
        with pytest.raises(AttributeError, match="'Named' object"):
            call()


def test_compiled_calls_go_by_it(measured: Callable[..., None]) -> None:
    """A graph that was made for many sizes still takes what the size at hand asks for."""
    if registry.backends()["cpu"].unavailable():
        pytest.skip("needs two backends that run")
    measured(nt_xent=[{"rows": 16, "order": ["torch"]}, {"order": ["cpu"]}])
    loss = torch.compile(fused_nt_xent_loss, backend="aot_eager", dynamic=True, fullgraph=True)
    for rows in (10, 14, 30, 50, 12):
        x = torch.randn(rows, 3, requires_grad=True)
        labels = torch.arange(rows) // 2
        value = loss(x, labels)
        (found,) = torch.autograd.grad(value, x)
        plain = fused_nt_xent_loss(x, labels)
        assert torch.equal(value, plain)  # a number of the same backend
        torch.testing.assert_close(found, torch.autograd.grad(plain, x)[0])


def test_who_serves_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels for the CPU none; Triton's where they compare labels pair by pair."""
    monkeypatch.setattr(registry, "_chosen", {})
    lines = info.explain("nt_xent", torch.empty(9, 2), match=True).splitlines()
    assert lines[0].startswith("auto takes torch for nt_xent with a match;")
    assert "it finds positives by equal labels, and serves no match" in lines[1]
    refused = {}
    for loss in ("sup_con", "triplet_all"):
        spec = PairSpec(loss, (), match=Match(None))
        for name in ("triton", "cuda"):
            refused[name, loss] = registry.backends()[name].refuses(spec, "cuda", torch.float32)
    assert refused["triton", "sup_con"] is None
    assert refused["triton", "triplet_all"] == (
        "kernels of triplet_all go by the runs of classes, which a match has none of (the torch "
        "backend serves it)"
    )
    assert all("equal labels" in refused["cuda", loss] for loss in ("sup_con", "triplet_all"))


def test_explanations(measured: Callable[..., None]) -> None:
    measured(nt_xent=[{"rows": 2000, "features": 64, "order": ["first", "second"]}])
    x = torch.empty(9, 2)
    assert info.explain("nt_xent", x).splitlines()[:3] == [
        "auto takes first for nt_xent; the order is measured on cpu, up to 2,000 rows of up to 64 "
        "features",
        "  first   taken",
        "  second  not needed",
    ]
    assert "  first   no float64" in info.explain("nt_xent", x.double()).splitlines()
    rule = info.explain("search", x, x[:1]).splitlines()[0]
    assert rule.endswith(
        "the order is the rule for cpu devices; search was not measured on cpu at this size"
    )
    matched = info.explain("nt_xent", x, match=True).splitlines()
    assert matched[0].startswith("auto takes first for nt_xent with a match; the order is")
    with pytest.raises(ValueError, match="match must be False for 'search'"):
        info.explain("search", x, match=True)
    with pytest.raises(ValueError, match="op must be one of 'triplet_hard'.*got 'triplet'"):
        info.explain("triplet", x)
    with pytest.raises(ValueError, match="ref_embeddings must have the 2 features"):
        info.explain("nt_xent", x, torch.empty(3, 5))
