"""The `torch` backend: its near pairs, its bounded memory, and how much it asks of a device.

What it does on other devices than the CPU is tried on "meta", which has no values: whatever would
wait for the device to read one raises there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmlap_kernels.backends.device.packing import centre, less, pack_rows
from dmlap_kernels.backends.panels import TorchBackend, block, panel, panel_triplets
from dmlap_kernels.backends.panels.block import Block, Listed, Nearest, Rows
from dmlap_kernels.backends.panels.torch_backend import BY_CLASS
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.losses.calls import EVERY_CALL, Call

# Operations of one step, forward and backward, on a device: the params of a loss, its distance,
# whether rows are normalised, and how many there may be. The first eight sweep once in each half,
# and are to take at most 60.
#
# The three that take more have Euclidean distances between normalised rows: 36 operations before
# their own formulas and reductions. Bringing rows to unit length takes 3, and 6 backward; an exact
# centre 6, norms 2; distances 3 and roots 1; near pairs again from differences 4, and 5 backward
# without cancellation; no gradient at distance 0, both ends of a pair and the product 6. To go
# below would take fewer checks of exactness, or differences held until the backward half. The
# margin loss also weighs hinges with the numbers of positives and of negatives of each anchor.
STEPS: dict[str, tuple[tuple[float, ...], str, bool, int]] = {
    "nt_xent": ((0.1,), "cosine", False, 49),
    "multi_similarity": ((2.0, 50.0, 0.5, 0.0, 0.0), "cosine", False, 50),
    "sup_con": ((0.1,), "cosine", False, 59),
    "circle": ((0.25, 256.0), "cosine", False, 56),
    "triplet_hard": ((0.2, 0.0, 0.0), "euclidean", False, 60),
    "contrastive": ((0.0, 1.0, 0.0), "euclidean", True, 68),
    "lifted_structure": ((0.0, 1.0), "euclidean", True, 72),
    "margin": ((0.2,), "euclidean", True, 80),
    "triplet_semihard": ((0.2, 0.0, 0.0), "euclidean", False, 95),
    "triplet_all": ((0.2, 0.0, 0.0), "euclidean", False, 83),
    "n_pairs": ((), "dot", False, 88),
    "lifted_structure_original": ((0.0, 1.0), "euclidean", True, 97),
}
# That hand out memory, or are done on the host.
FREE = ("empty", "new_empty", "detach", "scalar_tensor")


class Operations(TorchDispatchMode):
    """Counts what a device is asked to do; views are not."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith(FREE):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [128, 4096])
@pytest.mark.parametrize("loss", STEPS)
def test_operations_of_a_step(loss: str, rows: int) -> None:
    params, distance, normalize, most = STEPS[loss]
    x = torch.empty(rows, 128, device="meta", requires_grad=True)
    labels = torch.empty(rows, dtype=torch.int64, device="meta")
    beta = torch.empty(rows, device="meta") if loss == "margin" else None
    problem = PairProblem(x, labels, None, None, beta)
    spec = PairSpec(loss, params, distance, normalize)
    with Operations() as seen, torch.no_grad():
        done = TorchBackend().forward(spec, problem, False, False)
        grad = torch.empty((), device="meta")
        found = TorchBackend().backward(spec, problem, done.saved, grad, done.context)
    assert found.x is not None and found.x.shape == x.shape
    assert len(seen.names) <= most, " ".join(seen.names)
    # Which add to an index that repeats in no fixed order on a GPU.
    assert not {"index_add", "index_add_", "scatter_add", "scatter_add_"} & set(seen.names)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other devices do, on the CPU: rows as they come, the nearest columns, and no lists of
    positive pairs."""
    monkeypatch.setattr(TorchBackend, "in_label_order", lambda _, spec, __: spec.loss in BY_CLASS)
    monkeypatch.setattr(block, "near_pairs", lambda of, share: Nearest(of))
    monkeypatch.setattr(panel_triplets, "FEW", 0)


@EVERY_CALL
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_other_devices_agree(call: Call, refs: bool, as_on_a_gpu: None) -> None:
    x, labels, y, ref_labels = call.draw(refs, rows=40, features=6)
    rows = [t.requires_grad_() for t in (x, y) if t is not None]
    value = call(x, labels, y, ref_labels, backend="torch")
    found = torch.autograd.grad(value, rows)
    wide = [None if t is None else t.detach().double() for t in (x, y)]
    leaves = [t.requires_grad_() for t in wide if t is not None]
    truth = call(wide[0], labels, wide[1], ref_labels, backend="torch")
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
    for mine, true in zip(found, torch.autograd.grad(truth, leaves), strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-5)


def twins(rows: int, features: int) -> Tensor:
    """Rows of which every two are a ten-thousandth apart, and both far from the origin."""
    g = torch.Generator().manual_seed(0)
    centres = 5 + torch.randn(rows // 2, features, generator=g)
    steps = 1e-4 * torch.randn(rows // 2, features, generator=g)
    return torch.cat((centres, centres + steps))


@pytest.mark.parametrize("nearest", [False, True], ids=["listed", "nearest"])
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
def test_near_pairs_come_from_differences(
    distance: str, nearest: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if nearest:
        request.getfixturevalue("as_on_a_gpu")
        monkeypatch.setattr(block, "_NEAREST_BYTES", 0)
    x = twins(60, 16)
    rows = Rows(x, x.square().sum(1))
    made = Block(rows, rows, distance, "highest")
    assert isinstance(made.near, Nearest if nearest else Listed)
    truth = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    truth = truth if distance == "euclidean" else truth.square()
    torch.testing.assert_close(made.d.double(), truth, rtol=2e-5, atol=0)
    at_d = torch.randn(60, 60, generator=torch.Generator().manual_seed(1))
    wide = x.double().requires_grad_()
    difference = wide[:, None] - wide
    length = torch.linalg.vector_norm(difference, dim=2)
    length = length if distance == "euclidean" else difference.square().sum(2)
    (wanted,) = torch.autograd.grad((length * at_d.double()).sum(), wide)
    for both in (False, True):
        gx, gy = torch.zeros_like(x), torch.zeros_like(x)
        made.gradients(at_d.clone(), gx, gy, both)
        found = gx if both else gx + gy
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-4)


@EVERY_CALL
def test_panels_add_up(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many panels, kept or not, give what one gives."""
    x, labels, y, ref_labels = call.draw(True, rows=23, features=5)
    rows = [t.double().requires_grad_() for t in (x, y) if t is not None]
    others = rows[1] if y is not None else None

    def step() -> list[Tensor]:
        value = call(rows[0], labels, others, ref_labels, backend="torch")
        return [value, *torch.autograd.grad(value, rows)]

    whole = step()
    monkeypatch.setattr(panel, "PANEL_BYTES", {"cpu": 1000, "other": 1000})
    for kept in (panel.KEPT_BYTES, 0):
        monkeypatch.setattr(panel, "KEPT_BYTES", kept)
        for mine, true in zip(step(), whole, strict=True):
            torch.testing.assert_close(mine, true)


def test_panels_fit_their_budget() -> None:
    labels = torch.arange(3000)
    sides = pack_rows(torch.randn(3000, 4), None, (labels, None), "cosine", False, "highest")
    cuts = list(panel.slices(sides))
    assert len(cuts) > 1
    assert all(4 * 3000 * (cut.stop - cut.start) <= panel.PANEL_BYTES["cpu"] for cut in cuts)
    assert sum(cut.stop - cut.start for cut in cuts) == 3000


def test_rows_lose_only_a_centre_that_is_exact() -> None:
    columns = {
        (4.0, 5.0, 6.0): 5.0,
        (-4.0, -5.0, -7.0): -5.5,
        (1.0, 2.0, 4.0): 0.0,
        (-1.0, 0.5, 1.0): 0.0,
        (5.0, torch.nan, 6.0): 0.0,
        (5.0, torch.inf, 6.0): 0.0,
    }
    rows = torch.tensor(list(columns)).T
    middle, exact = centre(rows)
    assert torch.where(exact, middle, 0).tolist() == list(columns.values())
    finite = rows[:, :4]
    found = less(finite, middle[:4], exact[:4])
    assert torch.equal(found, finite - torch.tensor(list(columns.values())[:4]))
