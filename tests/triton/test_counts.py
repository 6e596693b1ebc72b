"""How much a step asks of a device: operations of PyTorch and launches of kernels, forward and
backward, counted on tensors without values while nothing is launched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.triton.triton_backend import MATCHED, TritonBackend
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.backends.test_panels import Operations

ROWS = (128, 1024, 4096, 32768)
# Of each loss its numbers, its distance, whether it has references, and how many operations a step
# of up to 4,096 rows of 128 features may take; 32,768 are many panels.
SMALL = {
    "nt_xent": ((0.1,), "cosine", False, 10),
    "nt_xent_hardness": ((0.1, 1.0), "cosine", False, 10),
    "sup_con": ((0.1,), "cosine", False, 8),
    "sup_con_hardness": ((0.1, 1.0), "cosine", False, 8),
    "circle": ((0.25, 256.0), "cosine", False, 8),
    "multi_similarity": ((2.0, 50.0, 0.5, 0.0, 0.1), "cosine", False, 8),
    "contrastive": ((0.0, 1.0, 0.0), "euclidean", False, 9),
    "margin": ((0.2,), "euclidean", False, 9),
    "lifted_structure": ((0.0, 1.0), "euclidean", False, 9),
    "triplet_hard": ((0.2, 0.0, 0.0), "euclidean", False, 9),
    "triplet_easy_positive": ((0.2, 1.0, 0.0), "euclidean", False, 9),
    "triplet_easy_positive_semihard": ((0.2, 0.0, 0.0), "euclidean", False, 11),
    "siglip": ((10.0, 1.0), "cosine", False, 8),
    "n_pairs": ((), "dot", True, 11),
    "proxy_nca": ((8.0,), "sqeuclidean", True, 10),
    "cosface": ((64.0, 0.35), "cosine", True, 10),
    "arcface": ((64.0, 0.878, 0.479, 0.239), "cosine", True, 10),
    "proxy_anchor": ((32.0, 0.1, -0.1), "cosine", True, 9),
    "soft_triple": ((20.0, 0.1, 0.01), "cosine", True, 11),
}
SELF = {"n_pairs": ((), "dot", False, 13)}
# Of one panel the most, and for each panel of many: what is done once is 6, and sorting.
TRIPLETS = {
    ("triplet_all", "self", False): 13,
    ("triplet_semihard", "self", False): 13,
    ("triplet_all", "refs", False): 13,
    ("triplet_semihard", "refs", False): 13,
    ("triplet_all", "self", True): 13,
    ("triplet_semihard", "self", True): 13,
    ("triplet_all", "refs", True): 22,
    ("triplet_semihard", "refs", True): 22,
    ("triplet_distance_weighted", "self", False): 14,
    ("triplet_distance_weighted", "refs", False): 14,
    ("triplet_distance_weighted", "self", True): 14,
    ("triplet_distance_weighted", "refs", True): 23,
}
SWAP = {
    "triplet_hard": ((0.2, 0.0, 1.0), "euclidean", False, 12),
    "triplet_easy_positive": ((0.2, 0.0, 1.0), "euclidean", False, 12),
    "triplet_easy_positive_semihard": ((0.2, 1.0, 1.0), "euclidean", False, 14),
}
# Of one panel alone: of a batch with itself, and with as many references.
ANGULAR = ((40.0,), "cosine", {False: 10, True: 15})
# Whose terms need what all panels say: most operations of one panel, and of each of several.
LIFTED = ((0.0, 1.3), "euclidean", 11, 10)
MINED = {"multi_similarity": ((2.0, 50.0, 0.5, 1.0, 0.1), "cosine", False, 10)}
TABLE = [(loss, *row) for part in (SMALL, SELF, SWAP, MINED) for loss, row in part.items()]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    names: list[str] = []

    def note(self: JITFunction, *args: Any, grid: Any, **keywords: Any) -> None:
        assert 0 < grid[0] < 2**31 and all(size <= 65535 for size in grid[1:])
        names.append(self.__name__)

    monkeypatch.setattr(JITFunction, "run", note)
    monkeypatch.setattr(TritonBackend, "reads_memory", False)
    yield names


def operations(
    loss: str,
    params: tuple[float, ...],
    distance: str,
    shape: tuple[int, int],
    launched: list[str],
    classes: int | None = None,
    stats: bool = False,
    match: bool = False,
) -> list[str]:
    """Names of all that a step asks for, where there are references if there are ``classes``."""
    rows, features = shape
    x = torch.empty(shape, device="meta", requires_grad=True)
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    y = ref_labels = None
    if classes is not None:
        y = torch.empty((classes, features), device="meta", requires_grad=True)
        ref_labels = torch.empty(classes, dtype=torch.int64, device="meta")
    beta = torch.empty(rows, device="meta") if loss == "margin" else None
    problem = PairProblem(x, labels, y, ref_labels, beta)
    spec = PairSpec(loss, params, distance, True)
    if match:
        pairs = torch.empty((rows, classes or rows), dtype=torch.bool, device="meta")
        spec = spec._replace(match=Match(pairs))
    backend = TritonBackend()
    launched.clear()
    with Operations() as seen, torch.no_grad():
        done = backend.forward(spec, problem, stats, False)
        grad = torch.empty((), device="meta")
        found = backend.backward(spec, problem, done.saved, grad, done.context)
    assert found.x is not None and found.x.shape == x.shape
    assert y is None or (found.y is not None and found.y.shape == y.shape)
    return [*seen.names, *launched]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[4]}")
def test_operations_of_a_step(row: tuple[Any, ...], rows: int, launched: list[str]) -> None:
    loss, params, distance, proxies, most = row
    found = operations(loss, params, distance, (rows, 128), launched, 100 if proxies else None)
    panels = 1 if proxies or rows <= 4096 else 64
    # All but packing, the reduction and unpacking are done for each panel, whose products are made
    # again for the backward half.
    bound = most if panels == 1 else 3 + panels * (most - 3 + 1)
    assert len(found) <= bound, " ".join(found)


def of_triplets(loss: str, swap: bool) -> tuple[float, ...]:
    drawn = (0.5, 1.4, 3.0) if loss == "triplet_distance_weighted" else ()
    return (0.2, 0.0, float(swap), *drawn)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", MATCHED)
def test_operations_of_a_match(loss: str, refs: bool, rows: int, launched: list[str]) -> None:
    """Its bytes are filled once for a single panel, and for each of several in both halves. In
    backward a batch with itself adds those of the other way, where weights depend on them."""
    params, distance, _, _ = SMALL[loss]
    columns = rows if refs else None
    plain, found = (
        operations(loss, params, distance, (rows, 128), launched, columns, match=match)
        for match in (False, True)
    )
    panels = 1 if rows <= 4096 else 64
    other_way = 0 if refs or loss == "triplet_hard" else 2
    assert len(found) == len(plain) + panels * (min(panels, 2) + other_way), " ".join(found)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("row", TRIPLETS, ids=str)
def test_operations_of_triplets(row: tuple[str, str, bool], rows: int, launched: list[str]) -> None:
    loss, refs, swap = row
    if swap and rows > 4096:
        pytest.skip("by windows of positives")
    columns = rows if refs == "refs" else None
    found = operations(loss, of_triplets(loss, swap), "euclidean", (rows, 128), launched, columns)
    panels = 1 if rows <= 4096 else 64
    # All but sorting, runs, packing, the reduction and unpacking are done for each panel, whose
    # distances are made again for the backward half, and with them the weights of draws.
    again = 3 if loss == "triplet_distance_weighted" else 2
    bound = TRIPLETS[row] if panels == 1 else 5 + panels * (TRIPLETS[row] - 5 + again)
    assert len(found) <= bound, " ".join(found)


@pytest.mark.parametrize("rows", ROWS[:3])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_operations_of_angular(refs: bool, rows: int, launched: list[str]) -> None:
    params, distance, most = ANGULAR
    columns = rows if refs else None
    found = operations("angular", params, distance, (rows, 128), launched, columns)
    assert len(found) <= most[refs], " ".join(found)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_operations_of_the_original_lifted_structure(
    refs: bool, rows: int, launched: list[str]
) -> None:
    """Of many panels products are made for each of two sweeps forward and one or two backward."""
    params, distance, most, of_each = LIFTED
    columns = rows if refs else None
    found = operations(
        "lifted_structure_original", params, distance, (rows, 128), launched, columns
    )
    bound = most if rows <= 4096 else 3 + 64 * (of_each + refs)
    assert len(found) <= bound, " ".join(found)


# With statistics each panel is swept once more, and what anchors have of it is added up: three
# operations of one panel. Of pairs in a batch, which are half of its rows, the batch is packed and
# multiplied as well.
STATISTICS = 3
STATISTICS_OF_PAIRS = 5


def with_statistics() -> list[tuple[str, tuple[float, ...], str, str, int]]:
    """Of each loss its numbers, its distance, its references, and the most operations of a step of
    one panel."""
    rows = []
    for loss, params, distance, proxies, most in TABLE:
        more = STATISTICS_OF_PAIRS if loss == "n_pairs" and not proxies else STATISTICS
        rows.append((loss, params, distance, "proxies" if proxies else "self", most + more))
    for (loss, refs, swap), most in TRIPLETS.items():
        rows.append((loss, of_triplets(loss, swap), "euclidean", refs, most + STATISTICS))
    for with_refs, most in ANGULAR[2].items():
        rows.append(("angular", *ANGULAR[:2], "refs" if with_refs else "self", most + STATISTICS))
    for refs in ("self", "refs"):
        loss = "lifted_structure_original"
        rows.append((loss, *LIFTED[:2], refs, LIFTED[2] + STATISTICS))
    return rows


@pytest.mark.parametrize("rows", ROWS[:3])
@pytest.mark.parametrize("row", with_statistics(), ids=lambda row: f"{row[0]}-{row[3]}-{row[4]}")
def test_operations_with_statistics(row: tuple[Any, ...], rows: int, launched: list[str]) -> None:
    loss, params, distance, refs, most = row
    columns = {"self": None, "proxies": 100, "refs": rows}[refs]
    found = operations(loss, params, distance, (rows, 128), launched, columns, True)
    assert len(found) <= most, " ".join(found)
    # With swap distances among references are a panel as well.
    assert most <= 24 or refs == "refs"


@pytest.mark.parametrize("loss", ["contrastive", "sup_con", "triplet_hard", "margin"])
def test_operations_with_statistics_of_many_panels(loss: str, launched: list[str]) -> None:
    params, distance, _, _ = SMALL[loss]
    found = operations(loss, params, distance, (32768, 128), launched, None, True)
    plain = operations(loss, params, distance, (32768, 128), launched)
    assert len(found) <= len(plain) + 2 * 64 + 1, " ".join(found)


def test_every_loss_is_counted() -> None:
    counted = {row[0] for row in (*TABLE, *TRIPLETS)}
    assert counted | {"angular", "lifted_structure_original"} == set(FAMILIES)
    assert {row[0] for row in with_statistics()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("loss", "params"),
    [
        ("triplet_all", (0.2, 0.0, 0.0)),
        ("triplet_semihard", (0.2, 0.0, 0.0)),
        ("angular", (40.0,)),
        ("triplet_hard", (0.2, 0.0, 0.0)),
        ("sup_con", (0.1,)),
    ],
)
@pytest.mark.parametrize("shape", [(4, 16), (4, 64)], ids=str)
def test_grids_of_few_anchors_and_a_million_references(
    loss: str, params: tuple[float, ...], shape: tuple[int, int], launched: list[str]
) -> None:
    """`launched` holds them against what a GPU takes."""
    operations(loss, params, "euclidean", shape, launched, 1_100_000)
    assert launched


@pytest.mark.parametrize("rows", [128, 4096])
@pytest.mark.parametrize(("distance", "refs"), [("euclidean", None), ("cosine", 100)])
def test_operations_of_nearest(
    distance: str, refs: int | None, rows: int, launched: list[str]
) -> None:
    x = torch.empty(rows, 128, device="meta")
    y = None if refs is None else torch.empty(refs, 128, device="meta")
    with Operations() as seen:
        found = TritonBackend().nearest(x, y, 10, distance, False)
    assert found.indices.shape == found.distances.shape == (rows, 10)
    assert [*seen.names, *launched] == ["mm", "pack_kernel", "nearest_of_panel_kernel"]


@pytest.mark.parametrize("rows", [128, 4096])
def test_operations_of_hard_classes(
    rows: int, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only wait is for the number of classes."""
    x = torch.empty(rows, 128, device="meta")
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    monkeypatch.setattr(torch.Tensor, "__int__", lambda number: 50)
    with Operations() as seen:
        found = TritonBackend().hard_classes(x, labels, 10, 0.5, "euclidean", False)
    assert found.classes.shape == (50,) and found.scores.shape == (50, 10)
    kernels = ["runs_kernel", "pack_kernel", "hard_classes_kernel"]
    assert [*seen.names, *launched] == ["sort", "mm", *kernels]
