"""The bodies of the CUDA batch-hard kernels, executed on the CPU by `emulation.h`.

Coordinates are small integers, so that squared distances are exact in float32, ties are frequent,
and every index must agree with NumPy's.
"""

from __future__ import annotations

import numpy as np
import pytest


def expected(x, labels, y=None, ref_labels=None):
    self_case = y is None
    refs, their_labels = (x, labels) if self_case else (y, ref_labels)
    d2 = np.zeros((len(x), len(refs)))
    for i, row in enumerate(x.astype(np.float64)):
        d2[i] = ((row - refs) ** 2).sum(1)
    out = [np.zeros(len(x), np.float32) for _ in range(2)]
    out += [np.full(len(x), -1, np.int64) for _ in range(2)]
    index = np.arange(len(refs))
    for i in range(len(x)):
        positive = their_labels == labels[i]
        negative = ~positive
        if self_case:
            positive[i] = False
        for side, (pairs, sign) in enumerate(((positive, -1), (negative, 1))):
            if pairs.any():
                order = np.lexsort((index[pairs], their_labels[pairs], sign * d2[i, pairs]))
                best = index[pairs][order[0]]
                out[side][i], out[2 + side][i] = d2[i, best], best
    return out


def grid_points(rng, n, dim):
    return rng.integers(-2, 3, size=(n, dim)).astype(np.float32)


# Around the tile (64), the depth (16) and the four coordinates fetched at a time.
SHAPES = [(1, 1, 1), (2, 3, 5), (63, 65, 16), (64, 64, 15), (65, 130, 17), (130, 200, 33)]


@pytest.mark.parametrize("anchors,refs,dim", SHAPES)
@pytest.mark.parametrize("self_case", [True, False])
def test_agrees_with_numpy(emulated, anchors, refs, dim, self_case):
    rng = np.random.default_rng(anchors + dim)
    x, labels = grid_points(rng, anchors, dim), rng.integers(-3, 3, anchors)
    other = () if self_case else (grid_points(rng, refs, dim), rng.integers(-3, 3, refs))
    wanted = expected(x, labels, *other)
    for descending in (False, True):
        got = emulated(x, labels, *other, descending=descending)
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("splits", [1, 2, 4, 7])
def test_splits_do_not_show(emulated, splits):
    rng = np.random.default_rng(splits)
    x, labels = grid_points(rng, 70, 3), rng.integers(0, 9, 70)
    y, ref_labels = grid_points(rng, 300, 3), rng.integers(0, 9, 300)
    wanted = expected(x, labels, y, ref_labels)
    got = emulated(x, labels, y, ref_labels, splits=splits)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ties_go_to_the_lower_label_before_the_lower_index(emulated):
    x, labels = np.zeros((1, 4), np.float32), np.array([5])
    y = np.ones((130, 4), np.float32)
    ref_labels = np.full(130, 9)
    ref_labels[[70, 129]] = 2
    got = emulated(x, labels, y, ref_labels, splits=3)
    assert got[3].tolist() == [70]
    assert got[2].tolist() == [-1]


def test_no_references(emulated):
    x, labels = np.ones((3, 2), np.float32), np.arange(3)
    got = emulated(x, labels, np.ones((0, 2), np.float32), np.zeros(0, np.int64))
    assert [a.tolist() for a in got] == [[0, 0, 0], [0, 0, 0], [-1, -1, -1], [-1, -1, -1]]


def test_far_from_the_origin(emulated):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 24)).astype(np.float32) + np.float32(1000)
    labels = rng.integers(0, 5, 50)
    got, wanted = emulated(x, labels), expected(x, labels)
    for ours, theirs in zip(got[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_non_finite_rows_leave_indices_in_range(emulated):
    rng = np.random.default_rng(1)
    x, labels = grid_points(rng, 40, 6), rng.integers(0, 4, 40)
    x[3], x[17, 2] = np.nan, np.inf
    got = emulated(x, labels)
    for indices in got[2:]:
        assert ((indices >= -1) & (indices < 40)).all()
