"""Each primitive, run on the CPU, against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlap_kernels.backends.cuda.cuda_sweeps import CudaSweeps
from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Exponent, PairGradient
from tests.cuda import formulas

# Rows, columns (None: the self case), features: around tiles of 64 and 128, chunks of 256 features
# and stages of 16; several groups of rows; several parts of a gradient's columns.
SHAPES = [(1, None, 1), (66, None, 17), (300, None, 40), (1, 2, 3), (70, 131, 33), (129, 20, 272)]
DISTANCES = ["euclidean", "sqeuclidean", "cosine", "dot"]
CASES = [(*shape, DISTANCES[i % 4]) for i, shape in enumerate(SHAPES)]
CASES += [(66, None, 17, "cosine"), (70, 131, 33, "euclidean")]

sides_of_every_case = pytest.mark.parametrize(
    "sides",
    [formulas.make_sides(*case) for case in CASES],
    ids=["-".join(map(str, case)) for case in CASES],
)


def assert_near(got: Tensor, wanted: Tensor, rtol: float = 2e-6) -> None:
    """Equal up to a share of the largest finite entry; infinities exactly."""
    finite = wanted.isfinite()
    assert torch.equal(got[~finite].double(), wanted[~finite].double())
    if finite.any():
        atol = rtol * wanted[finite].abs().max().item()
        torch.testing.assert_close(got[finite].double(), wanted[finite].double(), rtol=0, atol=atol)


@sides_of_every_case
def test_extremes(sweeps: CudaSweeps, sides: Sides, order: str) -> None:
    d = formulas.distances(sides)
    positives, negatives = formulas.masks(sides)
    far = torch.where(positives, d, -torch.inf)
    near = torch.where(negatives, d, torch.inf)
    got = sweeps.extremes(sides, True)
    assert_near(got.positive, far.amax(1))
    assert_near(got.negative, near.amin(1))
    for column, pick, mask in (
        (got.positive_column, far.argmax(1), positives),
        (got.negative_column, near.argmin(1), negatives),
    ):
        assert column.tolist() == torch.where(mask.any(1), pick, -1).tolist()
    assert got.positive_sum is not None and got.negative_sum is not None
    assert_near(got.positive_sum, torch.where(positives, d, 0).sum(1))
    assert_near(got.negative_sum, torch.where(negatives, d, 0).sum(1))
    plain = sweeps.extremes(sides, False)
    assert plain.positive_sum is None
    assert torch.equal(plain.negative, got.negative)


@pytest.mark.parametrize("references", [None, 200])
def test_equal_distances_go_to_the_lower_column(
    sweeps: CudaSweeps, references: int | None, order: str
) -> None:
    sides = formulas.make_sides(200, references, 3, "sqeuclidean", classes=4)
    sides.x.zero_()
    sides.y.zero_()
    sides.x_norms.zero_()
    sides.y_norms.zero_()
    got = sweeps.extremes(sides, False)
    positives, negatives = formulas.masks(sides)
    assert got.positive_column.tolist() == positives.int().argmax(1).tolist()
    assert got.negative_column.tolist() == negatives.int().argmax(1).tolist()


@sides_of_every_case
@pytest.mark.parametrize("squared", [False, True])
def test_hinge_sums(sweeps: CudaSweeps, sides: Sides, squared: bool, order: str) -> None:
    d = formulas.distances(sides)
    positives, negatives = formulas.masks(sides)
    middle = d.mean(1).float()
    bounds = middle - 0.2 * middle.abs(), middle + 0.2 * middle.abs()
    got = sweeps.hinge_sums(sides, *bounds, squared)
    p = torch.where(positives, (d - bounds[0].double()[:, None]).relu(), 0)
    n = torch.where(negatives, (bounds[1].double()[:, None] - d).relu(), 0)
    assert_near(got.positive, (p * p if squared else p).sum(1))
    assert_near(got.negative, (n * n if squared else n).sum(1))
    assert_near(got.positive_hinge, p.sum(1))
    assert_near(got.negative_hinge, n.sum(1))
    assert got.positive_active.tolist() == (p > 0).sum(1).tolist()
    assert got.negative_active.tolist() == (n > 0).sum(1).tolist()


@sides_of_every_case
def test_logistic_sums(sweeps: CudaSweeps, sides: Sides, order: str) -> None:
    d = formulas.distances(sides)
    positives, negatives = formulas.masks(sides)
    e_p, e_n = Exponent(2.0, 0.5), Exponent(-3.0, 0.2)
    zero = torch.zeros_like(d)
    p = torch.where(positives, torch.logaddexp(formulas.exponent(e_p, d), zero), 0)
    n = torch.where(negatives, torch.logaddexp(formulas.exponent(e_n, d), zero), 0)
    assert_near(sweeps.logistic_sums(sides, e_p, e_n), (p + n).sum(1))


@sides_of_every_case
@pytest.mark.parametrize("kind", ["linear", "clipped", "mined"])
def test_log_sums(sweeps: CudaSweeps, sides: Sides, kind: str, order: str) -> None:
    d = formulas.distances(sides)
    positives, negatives = formulas.masks(sides)
    e_p, e_n = Exponent(2.0, 0.5), Exponent(-30.0, 0.2)
    if kind == "clipped":
        e_p, e_n = Exponent(1.5, 0.4, 1, 0.1), Exponent(-2.0, 0.6, -1, 1.4)
    above = below = None
    if kind == "mined":
        above, below = d.mean(1).float(), d.mean(1).float()
        positives = positives & (d > above[:, None])
        negatives = negatives & (d < below[:, None])
    got = sweeps.log_sums(sides, e_p, e_n, above, below)
    exponents = formulas.exponent(e_p, d), formulas.exponent(e_n, d)
    assert_near(got.pos_lse, formulas.log_sum(exponents[0], positives))
    assert_near(got.neg_lse, formulas.log_sum(exponents[1], negatives))
    assert_near(got.exponent_sum, torch.where(positives, exponents[0], 0).sum(1))


@sides_of_every_case
@pytest.mark.parametrize("kind", ["nt_xent", "lifted"])
def test_pair_terms(sweeps: CudaSweeps, sides: Sides, kind: str, order: str) -> None:
    d = formulas.distances(sides)
    positives, _ = formulas.masks(sides)
    g = torch.Generator().manual_seed(1)
    neg_lse = torch.randn(sides.anchors, generator=g)
    of_columns = neg_lse if sides.self_case else torch.randn(sides.columns, generator=g)
    neg_lse[::3] = -torch.inf
    of_columns[::2] = -torch.inf
    weight = torch.rand(sides.columns, generator=g)
    e = Exponent(0.7, 0.3)
    exponents = formulas.exponent(e, d)
    leaf = neg_lse.double()[:, None].expand_as(d).clone().requires_grad_()
    if kind == "nt_xent":
        terms = torch.nn.functional.softplus(exponents + leaf, threshold=1e9)
        got = sweeps.pair_terms(sides, kind, e, neg_lse, None, weight)
    else:
        both = torch.logaddexp(leaf, of_columns.double()[None])
        terms = (exponents + both).relu().square() / 2
        got = sweeps.pair_terms(sides, kind, e, neg_lse, of_columns, weight)
    terms = torch.where(positives, terms, 0)
    (terms * weight).sum().backward()
    assert leaf.grad is not None
    by_neg_lse = torch.where(leaf.isfinite(), leaf.grad, 0)
    assert_near(got.total, terms.detach().sum(1))
    assert got.nonzero.tolist() == (terms > 0).sum(1).tolist()
    assert_near(got.by_neg_lse, by_neg_lse.sum(1))


ROWS = {
    "hinge": 4,
    "squared_hinge": 4,
    "exponential": 5,
    "mined": 7,
    "nt_xent": 3,
    "lifted": 3,
    "logistic": 1,
}


def make_pair_gradient(kind: str, sides: Sides, ends: str = "both") -> PairGradient:
    """Of numbers in the range of the distances."""
    g = torch.Generator().manual_seed(2)
    scale = formulas.distances(sides).abs().mean().item() + 0.1
    tables = []
    for name, count in (("anchors", sides.anchors), ("columns", sides.columns)):
        table = torch.rand(ROWS[kind], count, generator=g)
        if "hinge" in kind:
            table[:2] *= 2 * scale
        if kind == "mined":
            table[5:] *= 2 * scale
        table[-1, ::5] = 0
        tables.append(table if ends in ("both", name) else None)
    if sides.self_case:
        tables[1] = None
    exponents = Exponent(1 / scale, 0.1), Exponent(-1 / scale, 0.2)
    return PairGradient(kind, *tables, *exponents)


@sides_of_every_case
@pytest.mark.parametrize("kind", ROWS)
def test_gradient(sweeps: CudaSweeps, sides: Sides, kind: str) -> None:
    assert_gradient(sweeps, sides, kind)


@sides_of_every_case
def test_gradient_in_either_order(sweeps: CudaSweeps, sides: Sides, order: str) -> None:
    assert_gradient(sweeps, sides, "exponential")


def test_gradient_over_several_tiles_of_a_block(sweeps: CudaSweeps, order: str) -> None:
    """Columns are in eight parts at most; these have two tiles each."""
    assert_gradient(sweeps, formulas.make_sides(40, 600, 17, "euclidean"), "exponential")


def test_groups_of_several_rows_of_tiles(sweeps: CudaSweeps) -> None:
    """Rows are in 32 groups at most; these have two tiles each, and column results of both meet."""
    sides = formulas.make_sides(4200, None, 2, "dot", classes=900)
    d = formulas.distances(sides)
    positives, negatives = formulas.masks(sides)
    got = sweeps.extremes(sides, True)
    assert_near(got.positive, torch.where(positives, d, -torch.inf).amax(1))
    assert_near(got.negative, torch.where(negatives, d, torch.inf).amin(1))
    assert got.negative_sum is not None
    assert_near(got.negative_sum, torch.where(negatives, d, 0).sum(1))


def assert_gradient(sweeps: CudaSweeps, sides: Sides, kind: str) -> None:
    pair_gradient = make_pair_gradient(kind, sides)
    wanted = formulas.gradients(sides, formulas.weights(pair_gradient, sides))
    got = sweeps.gradient(sides, pair_gradient)
    assert (got[1] is None) == sides.self_case
    for ours, theirs in zip(got, wanted, strict=True):
        if ours is not None and theirs is not None:
            assert_near(ours, theirs, 4e-6)


@pytest.mark.parametrize("ends", ["anchors", "columns"])
def test_gradient_of_one_end(sweeps: CudaSweeps, ends: str) -> None:
    sides = formulas.make_sides(40, 70, 9, "euclidean")
    pair_gradient = make_pair_gradient("exponential", sides, ends)
    wanted = formulas.gradients(sides, formulas.weights(pair_gradient, sides))
    for ours, theirs in zip(sweeps.gradient(sides, pair_gradient), wanted, strict=True):
        assert ours is not None and theirs is not None
        assert_near(ours, theirs)


@pytest.mark.parametrize("precision,error", [("high", 2e-3), ("medium", 2e-2)])
def test_faster_precisions(sweeps: CudaSweeps, precision: str, error: float) -> None:
    """They lose what tf32 and bf16 lose, and no more."""
    sides = formulas.make_sides(90, 70, 64, "cosine", precision=precision)
    pair_gradient = make_pair_gradient("exponential", sides)
    wanted = formulas.gradients(sides, formulas.weights(pair_gradient, sides))
    exact = formulas.make_sides(90, 70, 64, "cosine")
    for ours, plain, theirs in zip(
        sweeps.gradient(sides, pair_gradient),
        sweeps.gradient(exact, pair_gradient),
        wanted,
        strict=True,
    ):
        assert ours is not None and theirs is not None and plain is not None
        assert_near(ours, theirs, error)
        assert not torch.equal(ours, plain)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
def test_near_pairs_keep_their_digits(sweeps: CudaSweeps, distance: str) -> None:
    """Rows of a class lie within a thousandth of their norms; norms and products alone would leave
    their distances few digits, and their gradients none."""
    sides = formulas.make_sides(70, None, 24, distance)
    g = torch.Generator().manual_seed(4)
    centres = 30 * torch.randn(5, 24, generator=g)
    for i, (first, count) in enumerate(zip(sides.first.tolist(), sides.positives, strict=True)):
        assert count > 0
        sides.x[i, :24] = centres[first % 5] + 0.01 * sides.x[i, :24]
    sides.x_norms[:] = sides.x.square().sum(1)
    sides.y_norms[:] = sides.x_norms
    d = formulas.distances(sides)
    positives, _ = formulas.masks(sides)
    got = sweeps.extremes(sides, False)
    assert_near(got.positive, torch.where(positives, d, -torch.inf).amax(1), 1e-6)
    table = torch.zeros(4, 70)
    table[2] = 1  # hinges of all positives
    pair_gradient = PairGradient("hinge", table)
    wanted = formulas.gradients(sides, formulas.weights(pair_gradient, sides))
    assert_near(sweeps.gradient(sides, pair_gradient)[0], wanted[0], 2e-6)


def test_nothing_to_sweep(sweeps: CudaSweeps) -> None:
    for rows, columns in ((0, 3), (3, 0), (0, None)):
        sides = formulas.make_sides(rows, columns, 4, "euclidean")
        got = sweeps.extremes(sides, True)
        assert got.positive_column.tolist() == [-1] * rows
        assert got.negative.tolist() == [torch.inf] * rows
        pair_gradient = PairGradient("hinge", torch.ones(4, rows))
        gx, gy = sweeps.gradient(sides, pair_gradient)
        assert not gx.any()
        assert gy is None or not gy.any()


def test_columns_that_do_not_exist(sweeps: CudaSweeps) -> None:
    """An infinite norm takes a column out of the negatives."""
    sides = formulas.make_sides(30, 50, 6, "cosine")
    gone = torch.zeros(50, dtype=torch.bool)
    gone[::3] = True
    d = formulas.distances(sides)
    positives, negatives = formulas.masks(sides)
    negatives &= ~gone
    sides.y_norms[gone] = torch.inf
    sides.last[:] = sides.first  # no positives: a column in a run exists
    sides.col_last[:] = sides.col_first
    negatives |= positives & ~gone
    e = Exponent(-3.0, 0.1, -1, 1.5)
    got = sweeps.log_sums(sides, e, e)
    assert_near(got.neg_lse, formulas.log_sum(formulas.exponent(e, d), negatives))
    gx, gy = sweeps.gradient(sides, make_pair_gradient("exponential", sides))
    assert gy is not None
    assert gx.isfinite().all() and gy.isfinite().all()
    assert not gy[gone].any()
