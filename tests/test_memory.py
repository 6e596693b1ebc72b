"""`CrossBatchMemory`: a queue of past batches, without pairs of a row and itself."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmlap_kernels
from dmlap_kernels import fused_contrastive_loss, fused_sup_con_loss
from dmlap_kernels.losses import LOSSES, ContrastiveLoss, MarginLoss, ProxyNCALoss, SupConLoss
from dmlap_kernels.memory import CrossBatchMemory
from tests.losses.calls import CALLS, Call
from tests.test_docstrings import run_examples

PAIRS = [call for call in CALLS if not call.proxies]


def batches(count: int, rows: int = 12, features: int = 6, classes: int = 4) -> list[Any]:
    g = torch.Generator().manual_seed(rows)
    labels = [torch.randint(0, classes, (rows,), generator=g) for _ in range(count)]
    return [(torch.randn(rows, features, generator=g), one) for one in labels]


def by_hand(loss: Callable[..., Any], seen: list[Any], size: int) -> Tensor:
    """The loss of the last of the batches against the last rows, each in its place."""
    queue, names = torch.zeros(size, seen[0][0].shape[1]), torch.zeros(size, dtype=torch.int64)
    at = 0
    for rows, labels in seen:
        for row, label in zip(rows.detach(), labels, strict=True):
            queue[at % size], names[at % size] = row, label
            at += 1
    filled = min(at, size)
    itself = torch.arange(at - len(seen[-1][0]), at) % size
    return loss(*seen[-1], queue[:filled], names[:filled], self_index=itself)


@pytest.mark.parametrize("call", PAIRS, ids=lambda call: call.id)
@pytest.mark.parametrize("steps", [1, 2, 5], ids=["first", "filling", "full"])
def test_value_and_gradient(call: Call, steps: int) -> None:
    memory = CrossBatchMemory(partial(call), 6, 30)
    seen = batches(steps)
    for rows, labels in seen[:-1]:
        memory(rows, labels)
    mine, theirs = (seen[-1][0].clone().requires_grad_() for _ in range(2))
    loss = memory(mine, seen[-1][1])
    expected = by_hand(call, [*seen[:-1], (theirs, seen[-1][1])], 30)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert mine.grad is not None and torch.equal(mine.grad, theirs.grad)
    assert memory.filled == min(12 * steps, 30) and memory.position == 12 * steps % 30


@pytest.mark.parametrize("loss", LOSSES)
def test_modules(loss: str) -> None:
    memory = CrossBatchMemory(LOSSES[loss](), 6, 30)
    for rows, labels in batches(3):
        rows.requires_grad_()
        memory(rows, labels).backward()
        assert rows.grad is not None and rows.grad.isfinite().all()


def test_a_row_alone_in_its_class_has_no_positive() -> None:
    """Its own entry in the queue would be one, at distance zero."""
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 64)
    _, stats = CrossBatchMemory(ContrastiveLoss(return_stats=True), 6, 64)(
        torch.randn(5, 6), torch.arange(5)
    )
    assert stats.constraints == 20 and (stats.hardest_positive == -1).all()
    assert memory.filled == 0


def test_parameters_of_the_loss_are_learned() -> None:
    memory = CrossBatchMemory(MarginLoss(learn_beta=True, num_classes=4), 6, 30)
    rows, labels = batches(1)[0]
    memory(rows.requires_grad_(), labels).backward()
    assert [name for name, _ in memory.named_parameters()] == ["loss.beta"]
    assert memory.loss.beta.grad.abs().max() > 0


def test_keys_of_a_momentum_encoder() -> None:
    """MoCo: queries meet the keys of their own images, which are their positives, and older ones;
    queries are not enqueued."""
    torch.manual_seed(0)
    encoder = nn.Linear(8, 6)
    momentum = copy.deepcopy(encoder).requires_grad_(False)
    memory = CrossBatchMemory(partial(fused_sup_con_loss, temperature=0.2), 6, 32)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    keys_seen, ids_seen = [], []
    for step in range(3):
        images, ids = torch.randn(8, 8), torch.arange(8 * step, 8 * step + 8)
        queries, keys = encoder(images), momentum(images + 0.1)
        keys_seen.append(keys)
        ids_seen.append(ids)
        loss = memory(queries, ids, enqueue=keys)
        expected = fused_sup_con_loss(
            queries, ids, torch.cat(keys_seen), torch.cat(ids_seen), temperature=0.2
        )
        assert torch.equal(loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(momentum.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
    assert memory.filled == 24 and torch.equal(memory.embeddings[:24], torch.cat(keys_seen))


def test_enqueue_mask_says_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 9, 6, generator=g)
    labels = torch.randint(0, 3, (9,), generator=g)
    one, other = (CrossBatchMemory(SupConLoss(), 6, 20) for _ in range(2))
    mask = torch.arange(18) >= 9
    both = torch.cat((queries, keys)), labels.repeat(2)
    for _ in range(3):
        value = one(*both, enqueue_mask=mask)
        assert torch.equal(value, other(queries, labels, enqueue=keys))
    assert torch.equal(one.embeddings, other.embeddings)


@pytest.mark.parametrize("steps", [1, 4], ids=["filling", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_resumes_bit_for_bit(steps: int, dtype: torch.dtype) -> None:
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 30, dtype=dtype)
    seen = batches(steps + 3)
    for batch in seen[:steps]:
        memory(*batch)
    other = CrossBatchMemory(ContrastiveLoss(), 6, 30, dtype=dtype)
    other.load_state_dict(copy.deepcopy(memory.state_dict()))
    assert (other.position, other.filled) == (memory.position, memory.filled)
    for batch in seen[steps:]:
        assert torch.equal(memory(*batch), other(*batch))


def test_half_storage_rounds_the_queue_alone() -> None:
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 30, dtype=torch.float16)
    plain = CrossBatchMemory(ContrastiveLoss(), 6, 30)
    for rows, labels in batches(4):
        rows.requires_grad_()
        loss, exact = memory(rows, labels), plain(rows, labels)
        torch.testing.assert_close(loss, exact, rtol=2e-3, atol=2e-3)
        loss.backward()
        assert loss.dtype == rows.grad.dtype == torch.float32
    assert memory.embeddings.dtype == torch.float16


def test_moves_and_casts() -> None:
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 30)
    memory(*batches(1)[0])
    memory.to(torch.float64)
    assert memory.embeddings.dtype == torch.float64 and memory.labels.dtype == torch.int64
    assert memory(*batches(1)[0]).dtype == torch.float64
    memory.to("meta")
    with pytest.raises(ValueError, match="embeddings must be on the device of the queue"):
        memory(*batches(1)[0])


def test_evaluation_enqueues_nothing() -> None:
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 30)
    (rows, labels), later = batches(2)
    memory(rows, labels)
    memory.eval()
    assert torch.equal(memory(*later), fused_contrastive_loss(*later, rows, labels))
    assert memory.filled == 12
    memory.reset()
    assert memory.filled == memory.position == 0


def test_autocast() -> None:
    memory, layer = CrossBatchMemory(SupConLoss(), 6, 30), nn.Linear(6, 6)
    for rows, labels in batches(3):
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = layer(rows)
            loss = memory(embeddings, labels)
        assert embeddings.dtype == torch.bfloat16 and loss.dtype == torch.float32
        loss.backward()
    assert layer.weight.grad.isfinite().all() and memory.embeddings.dtype == torch.float32


def test_a_compiled_step_breaks_there_and_agrees() -> None:
    torch._dynamo.reset()
    layer, graphs = nn.Linear(6, 6), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    found = []
    for compiled in (False, True):
        memory = CrossBatchMemory(SupConLoss(), 6, 30)

        def step(rows: Tensor, labels: Tensor, memory: nn.Module = memory) -> Tensor:
            return memory(layer(rows), labels) * 2

        run = torch.compile(step, backend=backend) if compiled else step
        found.append([run(*batch).detach() for batch in batches(6)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert len(graphs) == 2  # before the call, and after it


def test_a_late_backward_is_refused() -> None:
    memory = CrossBatchMemory(ContrastiveLoss(), 6, 12)
    first, second = batches(2)
    loss = memory(first[0].requires_grad_(), first[1])
    memory(*second)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((ProxyNCALoss(2, 6), 6), {}, "loss must be a loss of pairs"),
        ((3, 6), {}, "loss must be a loss of pairs"),
        ((SupConLoss(), 0), {}, "embedding_size must be in 1"),
        ((SupConLoss(), 6, 2.5), {}, "memory_size must be an integer"),
        ((SupConLoss(), 6), {"dtype": torch.int64}, "dtype must be one of"),
        ((SupConLoss(), 6), {"gather": 1}, "gather must be True or False"),
        ((SupConLoss(), 6), {"group": object()}, "group must be left out"),
    ],
)
def test_refused_settings(arguments: tuple, keywords: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        CrossBatchMemory(*arguments, **keywords)


@pytest.mark.parametrize(
    ("rows", "keywords", "message"),
    [
        (torch.randn(4, 5), {}, "embeddings must have the 6 features of the queue"),
        (torch.randn(31, 6), {}, "embeddings must have at most the 30 rows of the queue"),
        (torch.randn(4, 6), {"enqueue": torch.randn(3, 6)}, r"labels must have shape \(3,\)"),
        (torch.randn(4, 6), {"enqueue_labels": torch.arange(4)}, "belong to enqueue"),
        (torch.randn(4, 6), {"enqueue_mask": torch.arange(4)}, "enqueue_mask must be a bool"),
        (torch.randn(4, 6), {"enqueue_mask": torch.ones(3).bool()}, "one entry for each row"),
        (
            torch.randn(4, 6),
            {"enqueue_mask": torch.ones(4).bool(), "enqueue": torch.randn(4, 6)},
            "exclude each other",
        ),
    ],
)
def test_refused_calls(rows: Tensor, keywords: dict, message: str) -> None:
    memory = CrossBatchMemory(SupConLoss(), 6, 30)
    with pytest.raises((TypeError, ValueError), match=message):
        memory(rows, torch.arange(len(rows)) % 2, **keywords)
    assert memory.filled == 0


def test_the_docstring_runs() -> None:
    text = inspect.getdoc(CrossBatchMemory)
    assert text is not None and "Raises:" in text
    run_examples("CrossBatchMemory", text)
    assert dmlap_kernels.memory.CrossBatchMemory is CrossBatchMemory


def _pml() -> Any:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses

    return losses


PEERS = {
    "ContrastiveLoss": ContrastiveLoss(),
    "MultiSimilarityLoss": dmlap_kernels.losses.MultiSimilarityLoss(),
    "CircleLoss": dmlap_kernels.losses.CircleLoss(),
    "NTXentLoss": dmlap_kernels.losses.NTXentLoss(),
    "GeneralizedLiftedStructureLoss": dmlap_kernels.losses.LiftedStructureLoss(form="generalized"),
    "MarginLoss": MarginLoss(),
    "SupConLoss": SupConLoss(),
    "TripletMarginLoss": dmlap_kernels.losses.TripletLoss(
        mining="all", margin=0.05, normalize=True, reduction="mean_nonzero"
    ),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("masked", [False, True], ids=["batch", "mask"])
def test_pytorch_metric_learning_agrees(name: str, masked: bool) -> None:
    """While the queue fills, when it is full, and where the batch lies across its end."""
    theirs = _pml().CrossBatchMemory(getattr(_pml(), name)(), 6, 30)
    ours = CrossBatchMemory(PEERS[name], 6, 30)
    mask = torch.arange(12) % 3 == 0 if masked else None
    for rows, labels in batches(12 if masked else 6):
        mine, other = (rows.clone().requires_grad_() for _ in range(2))
        loss = ours(mine, labels, enqueue_mask=mask)
        expected = theirs(other, labels, enqueue_mask=mask)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)
    assert torch.equal(ours.embeddings, theirs.embedding_memory)
