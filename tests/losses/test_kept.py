"""What the `cpu` backend keeps of a small problem for its backward: packed rows and the distances
of its tiles. A first backward takes them, a second one computes them again, to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.losses.cases import Case, Problem, draw_problem, keywords_of_some, usual, variants
from tests.losses.losses_table import LOSSES
from tests.losses.test_determinism import restore_threads  # noqa: F401
from tests.losses.test_self_index import containing_the_batch

REFS = ("self", "fewer", "more", "self_index")


def cases(loss: str) -> list[Case]:
    """Every kind of references; distances, options and reductions take turns."""
    row = LOSSES[loss]
    distances = row.distances or (row.default_distance,)
    options = variants(loss)
    found = []
    for i, refs in enumerate(REFS):
        if row.proxies:
            refs = {"self": "classes", "self_index": "classes"}.get(refs, refs)
        for j, dtype in enumerate((torch.float32, torch.float64, torch.bfloat16)):
            turn = i + 3 * j
            found.append(
                usual(
                    loss,
                    rows=(130, 97, 49)[j],
                    features=(33, 17, 40)[j],
                    refs=refs,
                    dtype=dtype,
                    distance=distances[turn % len(distances)],
                    options=options[turn % len(options)],
                    reduction=("mean", "none", "sum", "mean_nonzero")[turn % 4],
                )
            )
    return found


CASES = list(dict.fromkeys(case for loss in LOSSES for case in cases(loss)))


def problem_of(case: Case) -> Problem:
    if case.refs == "self_index":
        return containing_the_batch(usual(case.loss, rows=60, refs="more", dtype=case.dtype))
    problem = draw_problem(case)
    # Close pairs, which the tiles take again from differences.
    problem.x[1::7] = problem.x[: len(problem.x[1::7])] * (1 + 2**-6)
    problem.keywords = keywords_of_some(case, problem)
    return problem


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kept_and_computed_again(
    case: Case,
    threads: int,
    native: str,
    restore_threads: None,  # noqa: F811
) -> None:
    torch.set_num_threads(threads)
    problem = problem_of(case)
    keywords = dict(problem.keywords)
    leaves = [t.detach().requires_grad_() for t in (problem.x, problem.y) if t is not None]
    y = None if problem.y is None else leaves[1]
    for name in problem.parameters():
        keywords[name] = keywords[name].detach().clone().requires_grad_()
        leaves.append(keywords[name])
    fused = LOSSES[case.loss].fused
    value = fused(leaves[0], problem.labels, y, problem.ref_labels, backend=native, **keywords)
    upstream = torch.linspace(0.5, 2, max(1, value.numel())).to(value.dtype).reshape(value.shape)
    kept = torch.autograd.grad(value, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(value, leaves, upstream)
    assert any(gradient.any() for gradient in kept)
    for index, (a, b) in enumerate(zip(kept, again, strict=True)):
        assert torch.equal(a, b), f"gradient {index} differs by {(a - b).abs().max()}"


# Losses that wait for their backward, and what each of them keeps beside its tensors.
SCRIPT = """
import sys
import torch
import dmlap_kernels

def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * 4096

def kept(function, rows, refs, count, record=True, **options):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 32, generator=g).requires_grad_()
    labels = torch.arange(rows) // 4
    more = ()
    if refs:
        names = torch.arange(refs) % (rows // 4)
        more = torch.randn(refs, 32, generator=g).requires_grad_(), names
    with torch.set_grad_enabled(record):
        losses = [function(x, labels, *more, backend="cpu", **options) for _ in range(3)]
        before = resident()
        losses += [function(x, labels, *more, backend="cpu", **options) for _ in range(count)]
    return (resident() - before) / count / 2**20

far = {"neg_margin": 99.0}
contrastive = dmlap_kernels.fused_contrastive_loss
proxy = dmlap_kernels.fused_proxy_anchor_loss
for name, size in {
    "batch": kept(contrastive, 1024, 0, 12, **far),
    "references": kept(contrastive, 960, 960, 12, **far),
    "large batch": kept(contrastive, 2048, 0, 12, **far),
    "many references": kept(contrastive, 960, 4096, 12, **far),
    "proxies": kept(proxy, 4096, 1024, 6),
    "many proxies": kept(proxy, 4096, 4096, 6),
    "no gradient": kept(proxy, 4096, 1024, 6, record=False),
}.items():
    print(f"{name}={size:.2f}")
"""
# MiB: at least the distances themselves where they are kept, at most the bound and the rows.
BOUNDS = {
    "batch": (2.0, 4.0),
    "references": (3.5, 4.6),
    "large batch": (0.0, 1.5),
    "many references": (0.0, 1.5),
    "proxies": (16.0, 20.0),
    "many proxies": (0.0, 3.0),
    "no gradient": (0.0, 0.2),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_what_is_kept_is_bounded(native: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.rsplit("=", 1) for line in done.stdout.splitlines())
    sizes = {name: float(size) for name, size in found.items()}
    assert sizes.keys() == BOUNDS.keys()
    for name, (least, most) in BOUNDS.items():
        assert least <= sizes[name] <= most, f"{name}: {sizes[name]} MiB a loss is kept"
