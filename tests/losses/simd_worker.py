"""Compares a twelfth of each table, pairs left out and a search with the reference, on one
instruction set.

Run as ``DMLAP_SIMD=LEVEL python -m tests.losses.simd_worker LEVEL``.
"""

from __future__ import annotations

import sys

import torch

from dmlap_kernels import _native, nearest
from tests import reference
from tests.losses.cases import make_problem, table, usual
from tests.losses.compare import compare, compare_stats
from tests.losses.losses_table import LOSSES
from tests.losses.test_self_index import containing_the_batch


def main(level: str) -> None:
    if _native.simd_level() != level:
        raise SystemExit(f"asked for {level}, running {_native.simd_level()}")
    count = 0
    for loss in LOSSES:
        cases = table(loss)
        for case in cases[::12] + cases[-2:]:
            problem = make_problem(case)
            try:
                compare(case.loss, problem, "cpu")
                if case.rows <= 130:
                    compare_stats(case.loss, problem, "cpu")
            except AssertionError as error:
                raise SystemExit(f"{case.id}: {error}") from error
            count += 1
        if not LOSSES[loss].proxies:
            count += 1
            case = usual(loss, rows=60, features=9, refs="more", dtype=torch.float64)
            for labels_agree in (True, False):
                problem = containing_the_batch(case, labels_agree)
                compare(loss, problem, "cpu")
                compare_stats(loss, problem, "cpu")
    x = torch.randn(120, 37, generator=torch.Generator().manual_seed(0))
    distances, indices = nearest(x, k=50, backend="cpu")
    true_distances, true_indices = reference.nearest(x.double(), k=50)
    torch.testing.assert_close(distances.double(), true_distances, rtol=1e-5, atol=1e-5)
    if not torch.equal(indices, true_indices):
        raise SystemExit("nearest finds other neighbours than brute force")
    print(f"{level}: {count} cases agree")


if __name__ == "__main__":
    main(sys.argv[1])
