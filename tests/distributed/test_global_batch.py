"""`global_batch`: value, gradient and statistics of every loss are those of one process."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import dmlap_kernels
from dmlap_kernels import ring, ring_lists
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.panels import panel
from dmlap_kernels.distributed import _PROXY_REFERENCES, global_batch
from dmlap_kernels.losses import ContrastiveLoss, SupConLoss
from dmlap_kernels.memory import CrossBatchMemory
from tests.distributed import processes, scenarios
from tests.losses.cases import Case, Problem, make_problem, usual, variants
from tests.losses.losses_table import LOSSES
from tests.test_docstrings import run_examples

# Rows of each rank; one rank has none.
SIZES = {2: (20, 13), 4: (9, 0, 17, 7)}
REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")
STATS = ("constraints", "violated", "violation", "mean_positive_distance", "mean_negative_distance")


@dataclass(frozen=True)
class Shared:
    """A case, and how many ranks share its batch."""

    case: Case
    ranks: int
    backend: str
    self_index: bool = False
    stats: bool = False
    exchange: str = "gather"
    small: bool = False  # tables and panels of a few numbers, so that there are many

    @property
    def id(self) -> str:
        parts = [f"{self.ranks}", self.backend, self.exchange, self.case.id]
        parts += ["self-index"] * self.self_index + ["stats"] * self.stats + ["small"] * self.small
        return "-".join(parts)


def shared_cases(ranks: int) -> list[Shared]:
    """Every loss with every reduction, its options, and both kinds of references, in turn."""
    found = []
    for loss, row in LOSSES.items():
        sides = ("more",) if row.proxies else ("self", "more")
        if row.drawn:  # other anchors than references draw by their row on the rank
            sides = ("self",)
        reductions = REDUCTIONS if ranks == 2 else REDUCTIONS[1::2]
        settings = [(r, side) for r in reductions for side in sides]
        for i, (reduction, side) in enumerate(settings):
            options = variants(loss)[i // len(sides) % len(variants(loss))]
            changes = {"reduction": reduction, "refs": side, "options": options}
            case = usual(loss, rows=33, features=5, dtype=torch.float64, **changes)
            backend = ("cpu", "torch")[(i // len(sides) + ranks // 4) % 2]
            named = side == "more" and not row.proxies and i % 4 == 1
            found.append(Shared(case, ranks, backend, self_index=named))
        case = usual(loss, rows=33, features=5, dtype=torch.float64, refs=sides[0])
        found.append(Shared(case, ranks, "cpu" if ranks == 2 else "torch", stats=True))
        if "beta" in row.levels:
            case = replace(case, options=(("beta", "classes"), ("active", "half")))
            found.append(Shared(case, ranks, "cpu"))
        if loss in ring.LOSSES:
            of_ring = [
                replace(one, backend="torch", exchange="ring")
                for one in found
                if one.case.loss == loss and not one.stats
            ]
            found += of_ring + of_small_tables(loss, ranks)
    single = usual("triplet_hard", rows=33, features=5, dtype=torch.float32)
    return [*found, Shared(single, ranks, "cpu"), Shared(single, ranks, "torch")]


def of_small_tables(loss: str, ranks: int) -> list[Shared]:
    """Lists of pairs that take several turns of the ring, with each mixture of options."""
    row = LOSSES[loss]
    if not (row.variant_of == "triplet" or loss == "angular"):
        return []
    found = []
    for i, levels in enumerate(itertools.product(*row.levels.values())):
        options = tuple(zip(row.levels, levels, strict=True))
        changes = {"options": options, "refs": ("more", "self")[i % 2 or row.drawn]}
        if row.distances:
            changes["distance"] = row.distances[i % len(row.distances)]
        case = usual(loss, rows=33, features=5, dtype=torch.float64, **changes)
        found.append(Shared(case, ranks, "torch", exchange="ring", small=True))
    return found


CASES = {shared.id: shared for ranks in SIZES for shared in shared_cases(ranks)}


@functools.cache
def problem_of(shared: Shared) -> Problem:
    problem = make_problem(shared.case)
    if shared.self_index:
        # References of the own rank alone can be named.
        at = torch.arange(len(problem.x))
        refs = problem.y.clone()
        where = reference_rows(shared, problem)
        for rows, own in zip(at.split(SIZES[shared.ranks]), where, strict=True):
            refs[own[: len(rows)]] = problem.x[rows[: len(own)]]
        problem = replace(problem, y=refs)
        problem.keywords = problem.keywords | {"self_index": torch.full((len(at),), -1)}
        for rows, own in zip(at.split(SIZES[shared.ranks]), where, strict=True):
            count = min(len(rows), len(own))
            problem.keywords["self_index"][rows[:count]] = own[:count]
    return problem


def reference_rows(shared: Shared, problem: Problem) -> tuple[Tensor, ...]:
    """The references of each rank, unless they are proxies: the last rank has the rest."""
    return torch.arange(len(problem.y)).tensor_split(shared.ranks)


def leaves_of(problem: Problem) -> list[Tensor]:
    rows = [problem.x] if problem.y is None else [problem.x, problem.y]
    numbers = [problem.keywords[name] for name in problem.parameters()]
    return [leaf.detach().clone().requires_grad_() for leaf in (*rows, *numbers)]


def call(shared: Shared, loss: Any, problem: Problem, leaves: list[Tensor]) -> Any:
    named = dict(zip(problem.parameters(), leaves[1 if problem.y is None else 2 :], strict=True))
    y = None if problem.y is None else leaves[1]
    keywords = LOSSES[shared.case.loss].fixed | problem.keywords | named
    keywords["backend"] = shared.backend
    keywords |= {"return_stats": True} if shared.stats else {}
    return loss(leaves[0], problem.labels, y, problem.ref_labels, **keywords)


def part_of(shared: Shared, problem: Problem, rank: int) -> Problem:
    at = torch.arange(len(problem.x)).split(SIZES[shared.ranks])[rank]
    part = replace(problem, x=problem.x[at], labels=problem.labels[at])
    if problem.y is not None and not LOSSES[shared.case.loss].proxies:
        own = reference_rows(shared, problem)[rank]
        part = replace(part, y=problem.y[own], ref_labels=problem.ref_labels[own])
        if shared.self_index:
            itself = problem.keywords["self_index"][at]
            itself = torch.where(itself >= 0, itself - own[0], itself)
            part.keywords = problem.keywords | {"self_index": itself}
    return part


def weights_of(value: Tensor, rows: slice) -> Tensor:
    """Of the entries of a loss that is not reduced."""
    if value.ndim == 0:
        return torch.ones_like(value)
    return torch.linspace(0.5, 2.0, 60, dtype=value.dtype)[rows]


def work(rank: int, problems: Path) -> dict[str, Any]:
    """Value, gradients and statistics of each case on a rank, and `scenarios`."""
    groups = {ranks: dist.new_group(range(ranks)) for ranks in SIZES}
    found: dict[str, Any] = {}
    for name, problem in torch.load(problems, weights_only=False).items():
        shared = CASES[name]
        if rank < shared.ranks:
            with small_tables() if shared.small else contextlib.nullcontext():
                found[name] = work_on(rank, shared, problem, groups[shared.ranks])
    return found | scenarios.all_of(rank)


@contextlib.contextmanager
def small_tables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_lists, "LIST_BYTES", 3000)
        patch.setitem(panel.PANEL_BYTES, "cpu", 4000)
        yield


def work_on(rank: int, shared: Shared, problem: Problem, group: Any) -> Any:
    row, part = LOSSES[shared.case.loss], part_of(shared, problem, rank)
    leaves = leaves_of(part)
    function = getattr(dmlap_kernels, row.function)
    loss = global_batch(function, group=group, exchange=shared.exchange)
    value = call(shared, loss, part, leaves)
    value, stats = value if shared.stats else (value, None)
    first = sum(SIZES[shared.ranks][:rank])
    if shared.case.loss == "proxy_anchor":
        first = len(part.y) * rank // shared.ranks
    weights = weights_of(value, slice(first, first + value.numel()))
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaves), stats


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Of every case and scenario what each rank found; one start of processes for all."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({name: problem_of(one) for name, one in CASES.items()}, folder / "problems.pt")
    of_ranks = processes.run(max(SIZES), work, folder, folder / "problems.pt")
    return {name: [one[name] for one in of_ranks if name in one] for name in of_ranks[0]}


@pytest.mark.parametrize("name", CASES)
def test_as_one_process(name: str, results: dict[str, list[Any]], native: str) -> None:
    shared = CASES[name]
    row, problem = LOSSES[shared.case.loss], problem_of(shared)
    leaves = leaves_of(problem)
    value = call(shared, getattr(dmlap_kernels, row.function), problem, leaves)
    value, stats = value if shared.stats else (value, None)
    weights = weights_of(value, slice(0, value.numel()))
    expected = torch.autograd.grad((value * weights).sum(), leaves)
    values, gradients, statistics = zip(*results[name], strict=True)
    tolerance = 1e-9 if shared.case.dtype == torch.float64 else 2e-5
    close = {"rtol": tolerance, "atol": tolerance}
    if value.ndim:
        torch.testing.assert_close(torch.cat(values), value.detach(), **close)
    for one in values:
        if value.ndim == 0:
            torch.testing.assert_close(one, value.detach(), **close)
    owned = 1 if problem.y is None or row.proxies else 2
    for i, (truth, parts) in enumerate(zip(expected, zip(*gradients, strict=True), strict=True)):
        # What is averaged, as DDP does, is that of one process.
        found = torch.cat(parts) / shared.ranks if i < owned else sum(parts) / shared.ranks
        assert truth.isfinite().all()
        torch.testing.assert_close(found, truth, rtol=tolerance, atol=tolerance * truth.abs().max())
    if stats is None:
        return
    for one in statistics:
        for attribute in STATS:
            torch.testing.assert_close(
                getattr(one, attribute), getattr(stats, attribute), equal_nan=True, **close
            )
    for attribute in ("hardest_positive", "hardest_negative"):
        together = torch.cat([getattr(one, attribute) for one in statistics])
        assert torch.equal(together, getattr(stats, attribute))


def single_step(criterion: str) -> Any:
    model, loss = scenarios.model_and(criterion)
    value = scenarios.one_step(model, loss, scenarios.batch())
    return value, [p.grad for p in (*model.parameters(), *loss.parameters())]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert len(found[1]) == len(expected[1])
    for mine, truth in zip(found[1], expected[1], strict=True):
        assert truth.abs().max() > 0
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", scenarios.CRITERIA)
def test_a_step_under_ddp(criterion: str, results: dict[str, list[Any]]) -> None:
    for found in results["ddp"]:
        close(found[criterion], single_step(criterion))


@pytest.mark.parametrize("criterion", ["temperature", "proxy_anchor"])
def test_a_step_under_fsdp(criterion: str, results: dict[str, list[Any]]) -> None:
    if torch.__version__.startswith("2.8."):
        pytest.skip("over gloo, FSDP of PyTorch 2.8 adds gradients up where it is to average them")
    for found in results["fsdp"]:
        value, gradients = single_step(criterion)
        close(found[criterion], (value, gradients[: len(found[criterion][1])]))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_gradients_that_are_accumulated(wrapper: str, results: dict[str, list[Any]]) -> None:
    if wrapper == "fsdp" and torch.__version__.startswith("2.8."):
        pytest.skip("over gloo, FSDP of PyTorch 2.8 adds gradients up where it is to average them")
    model, _ = scenarios.model_and("triplet")
    for step in range(2):
        scenarios.one_step(model, SupConLoss(), scenarios.batch(step))
    for found in results["accumulated"]:
        for mine, parameter in zip(found[wrapper], model.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_loss_outside_of_data_parallel() -> None:
    """It gathers the rows of its replicas, so that the loss sees the batch."""
    x, labels = scenarios.batch()
    model, loss = scenarios.model_and("triplet")
    value = scenarios.one_step(torch.nn.DataParallel(model), global_batch(loss), (x, labels))
    close((value, [p.grad for p in model.parameters()]), single_step("triplet"))


def test_what_nccl_takes(results: dict[str, list[Any]]) -> None:
    """Every rank calls the same, in the same order, for shapes that are the same."""
    first, *others = results["as_nccl"]
    assert all(calls for calls in first.values())
    for found in others:
        assert found == first


def test_gradients_that_are_added_up(results: dict[str, list[Any]]) -> None:
    values, gradients = zip(*results["sums"], strict=True)
    close(
        (values[0], [sum(parts) for parts in zip(*gradients, strict=True)]), single_step("margin")
    )


def test_even_batches(results: dict[str, list[Any]]) -> None:
    x, labels = scenarios.batch()
    model, _ = scenarios.model_and("triplet")
    value = scenarios.one_step(model, SupConLoss(), (x[:16], labels[:16]))
    for gathered, passed in results["even"]:
        for found in (gathered, passed):
            close(found, (value, [p.grad for p in model.parameters()]))


def test_a_function_of_several_losses(results: dict[str, list[Any]]) -> None:
    model, _ = scenarios.model_and("triplet")
    value = scenarios.one_step(model, scenarios.two_losses, scenarios.batch())
    for found in results["several"]:
        close(found, (value, [p.grad for p in model.parameters()]))


def test_a_memory_of_all_ranks(results: dict[str, list[Any]]) -> None:
    """The same queue on every rank, and the loss of one process with that queue."""
    model, _ = scenarios.model_and("triplet")
    queue = CrossBatchMemory(ContrastiveLoss(), scenarios.FEATURES, 40)
    for step in range(3):
        model.zero_grad()
        value = scenarios.one_step(model, queue, scenarios.batch(step))
        for found in results["memory"]:
            close(found[f"shared {step}"], (value, [p.grad for p in model.parameters()]))
    for found in results["memory"]:
        rows, labels, position = found["rows"]
        torch.testing.assert_close(rows, queue.embeddings)
        assert torch.equal(rows, results["memory"][0]["rows"][0])
        assert torch.equal(labels, queue.labels) and position == queue.position


def test_a_memory_a_rank(results: dict[str, list[Any]]) -> None:
    model, _ = scenarios.model_and("triplet")
    x, labels = scenarios.batch()
    with torch.no_grad():
        parts = [scenarios.own(rank, (model(x), labels)) for rank in range(4)]
    for found, part in zip(results["memory"], parts, strict=True):
        value, filled = found["alone"]
        torch.testing.assert_close(value, dmlap_kernels.fused_contrastive_loss(*part))
        assert filled == len(part[0])
        assert "gather=True" in found["refused"]


def test_a_row_that_is_not_finite(results: dict[str, list[Any]]) -> None:
    assert torch.tensor(results["nonfinite"]).isnan().all()


def test_rows_whose_squares_overflow(results: dict[str, list[Any]]) -> None:
    x, labels = scenarios.batch()
    leaf = (1e25 * x[:, : scenarios.FEATURES]).requires_grad_()
    value = scenarios.far_apart(leaf, labels)
    value.backward()
    assert value.isfinite() and value > 1e24
    gradient = torch.cat([found[1][0] for found in results["long_rows"]])
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
    for found in results["long_rows"]:
        torch.testing.assert_close(found[0], value.detach(), rtol=1e-5, atol=0)


def test_refusals(results: dict[str, list[Any]]) -> None:
    for found in results["refusals"]:
        assert "4 of torch.float32 on rank 0 and 5 of torch.float32 on rank 2" in found["features"]
        assert "4 of torch.float64 on rank 3" in found["dtype"]
        assert "class_scores" in found["scores"]
        stats, number, backend, loss = found["ring"]
        assert "return_stats must be False" in stats and "Python numbers" in number
        assert 'got "cpu"' in backend and "no form of triplet_hard" in loss
        assert 'take exchange="gather"' in loss


def test_every_loss_that_exchanges_embeddings_is_in_the_ring() -> None:
    assert {*ring.LOSSES, *_PROXY_REFERENCES} == set(FAMILIES)


def test_turns_of_the_ring(results: dict[str, list[Any]]) -> None:
    """As `docs/distributed.md` says."""
    more = {
        "nt_xent": (2, 1),
        "nt_xent_hardness": (3, 3),
        "sup_con_hardness": (2, 2),
        "n_pairs": (2, 1),
        "lifted_structure_original": (2, 2),
        "triplet_hard": (2, 1),
        "triplet_easy_positive": (2, 1),
        "triplet_easy_positive_semihard": (3, 1),
        "triplet_semihard": (3, 1),
        "triplet_all": (2, 1),
        "triplet_distance_weighted": (3, 1),
        "angular": (3, 2),
    }
    for found in results["turns"]:
        assert found == {loss: more.get(loss, (1, 1)) for loss in ring.LOSSES}


def test_what_a_rank_holds(results: dict[str, list[Any]]) -> None:
    """A ring makes no numbers of the size of the embeddings of all ranks, whatever the loss."""
    for found in results["held"]:
        assert set(found) == {"gather", *ring.LOSSES}
        assert found.pop("gather") >= 4
        for loss, blocks in found.items():
            assert blocks <= 2.2, loss


def test_a_compiled_step(results: dict[str, list[Any]]) -> None:
    value, _ = single_step("triplet")
    for found in results["compiled"]:
        torch.testing.assert_close(found, value)


def test_one_process_is_the_loss_itself() -> None:
    x, labels = torch.randn(8, 5), torch.arange(8) // 2
    loss = SupConLoss(temperature=0.2)
    assert torch.equal(global_batch(loss)(x, labels), loss(x, labels))
    with pytest.raises(ValueError, match="gradients must be one of 'mean', 'sum', got 'all'"):
        global_batch(loss, gradients="all")
    with pytest.raises(TypeError, match="loss must be a loss, got 3"):
        global_batch(3)


def test_a_dead_rank_ends_the_others(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    queue = context.Queue()
    started = [
        context.Process(target=scenarios.die, args=(r, 3, tmp_path, queue)) for r in range(3)
    ]
    for process in started:
        process.start()
    told = dict(queue.get(timeout=50) for _ in range(2))
    for process in started:
        process.join(50)
    assert started[1].exitcode == 7 and set(told) == {0, 2}
    for rank, message in told.items():
        assert message.startswith(f"rank {rank} of 3 could not exchange ")
        assert "another rank has ended" in message


def test_the_docstring_runs() -> None:
    text = inspect.getdoc(global_batch)
    assert text is not None
    arguments = text[text.index("Args:") : text.index("Returns:")]
    for name in inspect.signature(global_batch).parameters:
        assert f"\n    {name}: " in arguments
    run_examples("global_batch", text)
