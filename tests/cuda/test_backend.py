"""The `cuda` backend: its reasons, and its arithmetic around the emulated kernel, on the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.backends import cuda, registry
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.panels import TorchBackend
from dmlap_kernels.problem import PairProblem, PairSpec


def seen(driver=13000, devices=((9, 0),), error="", runtime=13000):
    listed = [{"name": "a device", "capability": capability} for capability in devices]
    return {
        "runtime_version": runtime,
        "driver_version": driver,
        "error": error,
        "devices": listed,
    }


REASONS = [
    (["80"], seen(driver=0, devices=(), error="no device"), "13.0", "no NVIDIA driver"),
    (["80"], seen(driver=12020, devices=()), "13.0", "driver supports CUDA 12.2, but"),
    (["80"], seen(error="broken", devices=()), "13.0", "could not be listed: broken"),
    (["80"], seen(devices=()), "13.0", "no CUDA device is visible"),
    (["80", "90"], seen(devices=((7, 5),)), "13.0", "only capabilities here are 7.5"),
    (["90"], seen(devices=((8, 0),)), "13.0", "was built for 9.0"),
    (["90a"], seen(devices=((10, 0),)), "13.0", "only capabilities here are 10.0"),
    (["80"], seen(), None, "PyTorch was built without CUDA"),
    (["80"], seen(devices=((8, 6),)), "13.0", None),
    (["80"], seen(devices=((12, 0),)), "13.0", None),
    (["90a"], seen(), "13.0", None),
    (["80", "90", "100"], seen(devices=((7, 5), (9, 0))), "13.0", None),
    (["80"], seen(driver=13010), "13.0", None),
]


@pytest.mark.parametrize("archs,machine,torch_cuda,reason", REASONS)
def test_reasons(archs, machine, torch_cuda, reason):
    said = cuda.why_unavailable(archs, machine, torch_cuda)
    assert (said is None) if reason is None else (reason in said)


def test_asking_for_it_without_a_device_says_why():
    reason = registry.backends()["cuda"].unavailable()
    if reason is None:
        pytest.skip("this machine runs the cuda backend")
    with pytest.raises(RuntimeError, match="backend 'cuda' is not available: "):
        fused_triplet_loss(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), backend="cuda")


def test_refusals_name_what_is_served():
    backend = cuda.CudaBackend()
    triplet = PairSpec("triplet_hard", (0.2, 0.0, 0.0))
    assert "cpu" in backend.refuses(triplet, "cpu", torch.float32)
    assert "float64" in backend.refuses(triplet, "cuda", torch.float64)
    for loss in FAMILIES:
        refused = backend.refuses(PairSpec(loss, ()), "cuda", torch.float32)
        assert (refused is None) == (loss not in cuda.WITHOUT)


OPTIONS = list(
    itertools.product(
        ("euclidean", "sqeuclidean", "cosine"),
        ("mean", "mean_nonzero", "sum", "none"),
        (False, True),
    )
)


@pytest.fixture
def backend(emulated_backend):
    """The backend with kernels that run on the CPU."""
    return registry.backends()["cuda"]


def stats_of(done):
    return [value for value in vars(done.stats).values() if value is not None]


@pytest.mark.parametrize("distance,reduction,self_case", OPTIONS)
@pytest.mark.parametrize("smooth,swap", [(False, False), (True, True)])
@pytest.mark.parametrize("normalize", [False, True])
def test_agrees_with_torch(backend, distance, reduction, self_case, smooth, swap, normalize):
    torch.manual_seed(7)
    x, labels = torch.randn(41, 9), torch.randint(0, 12, (41,))
    y, ref_labels = (None, None) if self_case else (torch.randn(66, 9), torch.randint(0, 12, (66,)))
    problem = PairProblem(x, labels, y, ref_labels)
    params = (0.3, float(smooth), float(swap))
    spec = PairSpec("triplet_hard", params, distance, normalize, reduction)
    grad = torch.rand(41) if reduction == "none" else torch.tensor(1.7)
    results = []
    for one in (backend, TorchBackend()):
        done = one.forward(spec, problem, True, False)
        gradients = one.backward(spec, problem, done.saved, grad)
        results.append([done.loss, *gradients, *stats_of(done)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_saved_tensors_are_as_announced(backend):
    problem = PairProblem(torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 2]), None, None)
    spec = PairSpec("triplet_hard", (0.2, 0.0, 0.0))
    saved = backend.forward(spec, problem, False, False).saved
    announced = backend.saved_like(spec, problem)
    assert (saved.shape, saved.dtype) == (announced.shape, announced.dtype)


@pytest.mark.parametrize("with_references", [False, True])
def test_degenerate_batches(backend, with_references):
    x, labels = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    y, ref_labels = (torch.ones(0, 3), labels[:0]) if with_references else (None, None)
    problem = PairProblem(x, labels, y, ref_labels)
    spec = PairSpec("triplet_hard", (0.2, 0.0, 0.0))
    done = backend.forward(spec, problem, False, False)
    assert done.loss == 0
    gx, gy, _ = backend.backward(spec, problem, done.saved, torch.tensor(1.0))
    assert not gx.any()
    assert (gy is None) != with_references


def test_coinciding_rows_have_no_gradient(backend):
    problem = PairProblem(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), None, None)
    spec = PairSpec("triplet_hard", (0.2, 0.0, 0.0))
    done = backend.forward(spec, problem, False, False)
    gx, *_ = backend.backward(spec, problem, done.saved, torch.tensor(1.0))
    assert done.loss == torch.tensor(0.2)
    assert not gx.any()


@pytest.mark.parametrize("length", [0.0, 5e-13, 3e-10])
@pytest.mark.parametrize("self_case", [True, False])
def test_cosine_of_short_rows(backend, length, self_case):
    """A row too short to be normalised is farther from all others than its coordinates say."""
    torch.manual_seed(5)
    x, labels = torch.randn(24, 3), torch.arange(24) % 6
    x[4] *= length / x[4].norm()
    problem = PairProblem(x, labels, None, None)
    if not self_case:
        problem = PairProblem(torch.randn(30, 3), torch.arange(30) % 6, x, labels)
    spec = PairSpec("triplet_hard", (0.5, 0.0, 0.0), "cosine", False, "none")
    ours = backend.forward(spec, problem, False, False).loss
    torch.testing.assert_close(ours, TorchBackend().forward(spec, problem, False, False).loss)


def test_non_finite_embeddings_give_a_non_finite_loss(backend):
    x = torch.randn(6, 3)
    x[2, 1] = torch.nan
    problem = PairProblem(x, torch.tensor([0, 0, 1, 1, 2, 2]), None, None)
    done = backend.forward(PairSpec("triplet_hard", (0.2, 0.0, 0.0)), problem, False, False)
    assert not done.loss.isfinite()


GPU = registry.backends()["cuda"].unavailable() is None


@pytest.mark.skipif(not GPU, reason="the cuda backend does not run on this machine")
def test_on_a_gpu():
    torch.manual_seed(3)
    x = torch.randn(1000, 70, device="cuda")
    labels = torch.randint(0, 90, (1000,), device="cuda")
    results = []
    for name in ("cuda", "torch"):
        leaf = x.clone().requires_grad_()
        loss = fused_triplet_loss(leaf, labels, backend=name)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
