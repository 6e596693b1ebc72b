"""Primitives that see more than pairs, run on the CPU, against formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlap_kernels.backends.cuda import positive_windows
from dmlap_kernels.backends.cuda.cuda_sweeps import CudaSweeps
from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Triplets
from tests.cuda import class_formulas as formulas
from tests.cuda.test_sweeps import assert_near

# Anchors and references (None: the same) of each class, features: around tiles of 32 and 64, groups
# of 64 ranks, chunks of 256 features; classes without anchors, references or negatives; one with
# more ranks than a group.
SIDES: dict[str, tuple[list[int], list[int] | None, int, str]] = {
    "one": ([1], None, 1, "euclidean"),
    "no-negatives": ([3], None, 4, "cosine"),
    "self": ([4, 1, 9, 3, 12] + [2] * 19, None, 17, "euclidean"),
    "references": ([5, 0, 3, 1, 8, 20], [6, 40, 0, 2, 11, 12], 33, "cosine"),
    "features": ([2, 3], [4, 3], 272, "euclidean"),
    "many-ranks": ([2, 1, 2], [5, 70, 3], 5, "sqeuclidean"),
}
of_sides = pytest.mark.parametrize("name", SIDES)

TRIPLETS = {
    "semihard": Triplets("semihard", 0.0),
    "semihard-swap-smooth": Triplets("semihard", 0.0, True, True),
    "drawn": Triplets("distance_weighted", 0.0, False, False, 0.3, 30.0, 2**40 + 3),
    "drawn-near-swap": Triplets("distance_weighted", 0.0, False, True, 0.5, 1.4, 5),
    "all": Triplets("all", 0.0),
    "all-smooth": Triplets("all", 0.0, True),
    "all-swap": Triplets("all", 0.0, False, True),
}


def make(name: str, distance: str | None = None) -> Sides:
    anchors, references, features, usual = SIDES[name]
    return formulas.sides_of_classes(anchors, references, features, distance or usual)


def weights(sides: Sides) -> Tensor:
    return torch.rand(sides.anchors, generator=torch.Generator().manual_seed(3)) + 0.1


def assert_gradient(
    got: tuple[Tensor, Tensor | None], total: Tensor, leaves: list[Tensor], rtol: float = 4e-6
) -> None:
    """The gradient of a sum (B,) that weights have entered."""
    wanted = torch.autograd.grad(total.sum(), leaves)
    assert (got[1] is None) == (len(leaves) == 1)
    for ours, theirs in zip(got, wanted, strict=False):
        assert ours is not None
        assert_near(ours, theirs, rtol)


def assert_triplets(sweeps: CudaSweeps, sides: Sides, triplets: Triplets) -> None:
    leaves = formulas.leaves_of(sides)
    lead, chosen = formulas.excess(sides, triplets, leaves)
    triplets = triplets._replace(margin=formulas.margin_apart(lead, chosen))
    wanted = formulas.triplet_sums(lead, chosen, triplets)
    got = sweeps.triplet_sums(sides, triplets)
    assert_near(got[:, ::2], wanted[:, ::2])
    assert torch.equal(got[:, 1::2], wanted[:, 1::2])
    assert torch.equal(got[:, 4], wanted[:, 4])
    weight = weights(sides)
    found = sweeps.triplet_gradient(sides, triplets, weight)
    assert_gradient(found, wanted[:, 0] * weight, leaves)


@of_sides
@pytest.mark.parametrize("kind", TRIPLETS)
def test_triplets(sweeps: CudaSweeps, name: str, kind: str, order: str) -> None:
    assert_triplets(sweeps, make(name), TRIPLETS[kind])


@of_sides
def test_angular(sweeps: CudaSweeps, name: str, order: str) -> None:
    assert_angular(sweeps, make(name, "cosine"))


def assert_angular(sweeps: CudaSweeps, sides: Sides) -> None:
    leaves = formulas.leaves_of(sides)
    terms = formulas.angular_terms(sides, 0.6, leaves)
    got = sweeps.angular_terms(sides, 0.6)
    assert_near(got[0], terms.detach().sum(1))
    assert got[1].tolist() == (terms > 0).sum(1).tolist()
    weight = weights(sides)
    found = sweeps.angular_gradient(sides, 0.6, weight)
    assert_gradient(found, terms.sum(1) * weight, leaves)


@pytest.mark.parametrize("name", ["self", "references"])
def test_windows_of_few_ranks(
    sweeps: CudaSweeps, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are sums over windows; some classes reach into several, others into none."""
    monkeypatch.setattr(positive_windows, "MOST_PAIRS", 1)
    monkeypatch.setattr(positive_windows, "LEAST_RANKS", 9)
    sides = make(name)
    assert len(list(positive_windows.windows(sides))) > 5
    for kind in ("semihard-swap-smooth", "drawn", "all-swap"):
        assert_triplets(sweeps, sides, TRIPLETS[kind])
    assert_angular(sweeps, make(name, "cosine"))


def test_a_gradient_of_several_parts_and_blocks(sweeps: CudaSweeps) -> None:
    sides = formulas.sides_of_classes([2] * 65 + [1, 3], None, 3, "euclidean")
    for kind in ("semihard", "all-swap"):
        assert_triplets(sweeps, sides, TRIPLETS[kind])


@pytest.mark.parametrize("kind", ["semihard", "all-swap"])
def test_equal_rows(sweeps: CudaSweeps, kind: str) -> None:
    """Of equal negatives the lower column is taken; at distance 0 there is no gradient."""
    sides = formulas.sides_of_classes([3, 70, 2], None, 4, "euclidean")
    for tensor in (sides.x, sides.x_norms, sides.y_norms):
        tensor.zero_()
    sides.x[3, 0] = 1
    sides.x_norms[3] = sides.y_norms[3] = 1
    triplets = TRIPLETS[kind]._replace(margin=0.5)
    sums = sweeps.triplet_sums(sides, triplets)
    gx, _ = sweeps.triplet_gradient(sides, triplets, torch.ones(75))
    leaves = formulas.leaves_of(sides)
    lead, chosen = formulas.excess(sides, triplets, leaves)
    assert_near(sums, formulas.triplet_sums(lead, chosen, triplets))
    assert gx.isfinite().all()
    if kind == "semihard":
        assert_gradient((gx, None), formulas.triplet_sums(lead, chosen, triplets)[:, 0], leaves)


# Anchors and centres of each class: tiles of 64 centres that classes fill, or not; larger classes;
# classes without centres, or without anchors; one class.
CENTRES: dict[str, tuple[list[int], list[int], int, str]] = {
    "single": ([3, 4, 0, 1], [1, 1, 1, 1], 3, "cosine"),
    "one-class": ([3, 2], [0, 4], 3, "dot"),
    "ragged": ([9, 0, 30, 2, 31, 1], [3, 40, 30, 0, 2, 64], 17, "dot"),
    "large": ([3, 5, 2], [2, 131, 65], 5, "cosine"),
    "many": ([1] * 40, [3] * 43, 272, "cosine"),
    "several-parts": ([70], [5] * 30, 6, "cosine"),
}


@pytest.mark.parametrize("name", CENTRES)
def test_soft_triple(sweeps: CudaSweeps, name: str, order: str) -> None:
    sides = formulas.sides_of_classes(*CENTRES[name])
    numbers = (3.0, 0.4, 0.05) if sides.distance == "dot" else (9.0, 0.1, 0.02)
    leaves = formulas.leaves_of(sides)
    terms = formulas.soft_triple_terms(sides, *numbers, leaves)
    got = sweeps.soft_triple(sides, *numbers)
    assert_near(got[0], terms.detach(), 4e-6)
    weight = weights(sides)
    found = sweeps.soft_triple_gradient(sides, *numbers, got[1:], weight)
    assert_gradient(found, terms * weight, leaves, 1e-5)


@pytest.mark.parametrize("rows,columns", [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_sweep(sweeps: CudaSweeps, rows: int, columns: int) -> None:
    sides = formulas.sides_of_classes([rows], [columns], 4, "cosine")
    weight = torch.ones(rows)
    results = []
    for triplets in (TRIPLETS["semihard"], TRIPLETS["drawn"], TRIPLETS["all-swap"]):
        results.append(sweeps.triplet_sums(sides, triplets))
        results.extend(sweeps.triplet_gradient(sides, triplets, weight))
    results.append(sweeps.angular_terms(sides, 0.6))
    results.extend(sweeps.angular_gradient(sides, 0.6, weight))
    found = sweeps.soft_triple(sides, 3.0, 0.1, 0.1)
    results.append(found[0])
    results.extend(sweeps.soft_triple_gradient(sides, 3.0, 0.1, 0.1, found[1:], weight))
    assert all(not result.any() for result in results)
