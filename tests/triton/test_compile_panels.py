"""As `test_compile`, for losses that go by panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from dmlap_kernels.backends.triton import configurations, kinds
from dmlap_kernels.backends.triton.panel_policies import POLICIES
from dmlap_kernels.backends.triton.plans import plan_of
from dmlap_kernels.backends.triton.statistics_steps import forward_with_statistics
from dmlap_kernels.backends.triton.triton_backend import MATCHED, step_of
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.triton.aot import CHECKED, Launch, assert_fits, launches, main_loop

# The numbers of each loss, those with the longest kernels.
LOSSES: dict[str, tuple[float, ...]] = {
    "triplet_hard": (0.2, 1.0, 0.0),
    "triplet_easy_positive": (0.2, 1.0, 0.0),
    "triplet_easy_positive_semihard": (0.2, 1.0, 0.0),
    "contrastive": (0.0, 1.0, 1.0),
    "margin": (0.2,),
    "siglip": (10.0, 1.0),
    "multi_similarity": (2.0, 50.0, 0.5, 1.0, 0.1),
    "lifted_structure": (0.0, 1.0),
    "nt_xent": (0.1,),
    "sup_con": (0.1,),
    "circle": (0.25, 256.0),
    "proxy_nca": (8.0,),
    "cosface": (64.0, 0.35),
    "arcface": (64.0, 0.878, 0.479, 0.239),
    "proxy_anchor": (32.0, 0.1, -0.1),
    "soft_triple": (20.0, 0.1, 0.01),
    "n_pairs": (),
    "angular": (40.0,),
    "triplet_all": (0.2, 1.0, 0.0),
    "triplet_semihard": (0.2, 1.0, 0.0),
    "triplet_distance_weighted": (0.2, 1.0, 0.0, 0.5, 1.4, 3.0),
    "lifted_structure_original": (0.0, 1.3),
    "nt_xent_hardness": (0.1, 1.0),
    "sup_con_hardness": (0.1, 1.0),
}


def step(
    loss: str,
    distance: str = "euclidean",
    refs: bool = False,
    rows: int = 200,
    reduction: str = "mean_nonzero",
    dtype: torch.dtype = torch.float32,
    statistics: bool = False,
    matched: bool = False,
) -> None:
    """Forward and backward, or forward with statistics."""
    x, labels = torch.randn(rows, 64, dtype=dtype), torch.arange(rows) // 4
    columns = rows + 100
    y = torch.randn(columns, 64, dtype=dtype) if refs else None
    itself = torch.arange(rows) if refs else None
    problem = PairProblem(
        x, labels, y, torch.arange(columns) // 4 if refs else None, torch.ones(rows), itself
    )
    spec = PairSpec(loss, LOSSES[loss], distance, True, reduction)
    if matched:
        spec = spec._replace(match=Match(torch.eye(rows, columns if refs else rows) > 0))
    plan = plan_of(spec, not refs)
    assert plan is not None
    made = step_of(plan, spec, problem)
    if statistics:
        forward_with_statistics(made, problem)
        return
    _, saved = made.forward()
    made.backward(saved, torch.ones(rows if reduction == "none" else ()))


# Of what else is compiled: all chips where resources are looked at; `test_fits` has all everywhere.
CAPABILITIES = [80, 90, 100] if CHECKED else [90]
# Whose steps are written down, each with a test of its own.
WRITTEN = (
    "soft_triple",
    "n_pairs",
    "angular",
    "lifted_structure_original",
    "triplet_all",
    "triplet_semihard",
    "triplet_distance_weighted",
)
# Bytes that threads of kernels over panels may spill, next to none of them in the loop over most
# tiles: fewer registers let more programs hide the way to the panel.
STACK = {"sweep_kernel": 192, "weights_of_panel_kernel": 192}


# With a match the two ends of a pair are computed apart, of a batch with itself.
STACK_OF_A_MATCH = 64


def assert_panels_fit(launch: Launch, folder: Path) -> None:
    stack, how = STACK.get(launch.kernel.__name__, 0), launch.arguments.get("how")
    if stack and how.matched.value:
        stack += STACK_OF_A_MATCH
    assert_fits(launch, folder, stack=stack)


# One of every policy and every kind of weights.
KINDS = (
    "triplet_hard",
    "triplet_easy_positive",
    "triplet_easy_positive_semihard",
    "contrastive",
    "multi_similarity",
    "nt_xent",
    "circle",
    "nt_xent_hardness",
    "sup_con_hardness",
)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", KINDS)
def test_fits(loss: str, refs: bool, capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    found = launches(monkeypatch, lambda: step(loss, refs=refs), capability)
    names = [launch.kernel.__name__ for launch in found]
    assert {"pack_kernel", "sweep_kernel", "near_kernel", "unpack_kernel"} <= set(names)
    for launch in found:
        assert_panels_fit(launch, tmp_path)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss not in (*KINDS, *WRITTEN)])
def test_others_fit(loss: str, monkeypatch: Any, tmp_path: Path) -> None:
    for launch in launches(monkeypatch, lambda: step(loss, refs=True), 90):
        assert_panels_fit(launch, tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", ["triplet_hard", "multi_similarity", "nt_xent"])
def test_those_of_a_match_fit(
    loss: str, refs: bool, capability: int, monkeypatch: Any, tmp_path: Path
) -> None:
    found = launches(monkeypatch, lambda: step(loss, refs=refs, matched=True), capability)
    matched = [launch for launch in found if launch.kernel.__name__ in (*STACK, "near_kernel")]
    assert all(launch.arguments["how"].matched.value for launch in matched) and len(matched) > 2
    for launch in found:
        assert_panels_fit(launch, tmp_path)


@pytest.mark.parametrize("loss", [loss for loss in MATCHED if loss not in KINDS])
def test_others_of_a_match_fit(loss: str, monkeypatch: Any, tmp_path: Path) -> None:
    for launch in launches(monkeypatch, lambda: step(loss, matched=True), 90):
        assert_panels_fit(launch, tmp_path)


@pytest.mark.parametrize(
    ("distance", "reduction"), [("sqeuclidean", "mean"), ("cosine", "sum"), ("dot", "none")]
)
def test_distances_fit(distance: str, reduction: str, monkeypatch: Any, tmp_path: Path) -> None:
    call = lambda: step("sup_con", distance, True, 200, reduction, torch.bfloat16)  # noqa: E731
    for launch in launches(monkeypatch, call, 90):
        assert_panels_fit(launch, tmp_path)


# Instructions for each pair of the sweeps and of the weights, at most; a panel is read in the time
# of about 25, and read and written in that of about 50.
INSTRUCTIONS: dict[tuple[str, str], tuple[int, ...]] = {
    ("contrastive", "euclidean"): (33, 41),
    ("sup_con", "cosine"): (32, 41),
    ("triplet_hard", "euclidean"): (36, 40),
    ("triplet_easy_positive", "euclidean"): (36, 40),
    ("triplet_easy_positive_semihard", "euclidean"): (27, 35),
    ("multi_similarity", "cosine"): (26, 36, 57),
    ("nt_xent", "cosine"): (32, 45),
    ("sup_con_hardness", "cosine"): (38, 40),
    ("nt_xent_hardness", "cosine"): (38, 42),
}

# To take a byte from each four that are read.
MORE_OF_A_MATCH = 8


@pytest.mark.skipif(not CHECKED, reason="instructions are a matter of versions")
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", INSTRUCTIONS, ids="-".join)
@pytest.mark.parametrize("matched", [False, True], ids=["labels", "match"])
def test_most_tiles_take_few_instructions(
    case: tuple[str, str], matched: bool, capability: int, monkeypatch: Any, tmp_path: Path
) -> None:
    """Four numbers of a panel come with one instruction, and no number passes between threads."""
    loss, distance = case
    call = lambda: step(loss, distance, rows=256, matched=matched)  # noqa: E731
    counts = []
    for launch in launches(monkeypatch, call, capability):
        if launch.kernel.__name__ not in STACK:
            continue
        loop = "\n".join(main_loop(launch, tmp_path))
        for slow in ("BAR", "SHFL", "LDS", "STS"):
            assert slow not in loop
        # Numbers of rows that weights have no registers for.
        spilled = loop.count("LDL") + loop.count("STL")
        most = 20 if matched else 16
        assert spilled <= (most if launch.kernel.__name__ != "sweep_kernel" else 0)
        # A sweep over positives only reads labels, several tiles at a time.
        if launch.arguments.get("kind") != "positives":
            how = launch.arguments["how"]
            pairs = how.BM.value * how.BN.value // (32 * launch.compiled.metadata.num_warps)
            assert loop.count("LDG.E.128") >= pairs // 4
            counts.append(loop.count("\n") / pairs)
    bounds = INSTRUCTIONS[case]
    more = MORE_OF_A_MATCH if matched else 0
    assert all(found <= most + more for found, most in zip(counts, bounds, strict=True)), counts


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_splitting_fits(capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(configurations, "splits_products", lambda *_: True)
    monkeypatch.setattr(kinds, "_kinds", {})
    for distance in ("euclidean", "cosine"):
        call = lambda distance=distance: step("sup_con", distance, dtype=torch.float16)  # noqa: E731
        (pack,) = [
            launch
            for launch in launches(monkeypatch, call, capability)
            if launch.kernel.__name__ == "pack_kernel"
        ]
        assert_fits(pack, tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("reduction", ["mean_nonzero", "none"])
def test_centres_fit(reduction: str, capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    call = lambda: step("soft_triple", "cosine", True, 200, reduction)  # noqa: E731
    found = launches(monkeypatch, call, capability)
    names = {launch.kernel.__name__ for launch in found}
    assert {"classes_kernel", "centres_kernel", "weights_of_centres_kernel"} <= names
    for launch in found:
        assert_panels_fit(launch, tmp_path)


# Kernels that the angular loss has for itself.
OF_ANGULAR = {
    False: {"runs_kernel", "angular_kernel", "angular_weights_kernel"},
    True: {
        "bounds_kernel",
        "angular_reference_kernel",
        "angular_anchor_weights_kernel",
        "angular_reference_weights_kernel",
    },
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_angular_fits(refs: bool, capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    found = launches(monkeypatch, lambda: step("angular", "cosine", refs), capability)
    names = {launch.kernel.__name__ for launch in found}
    assert names >= OF_ANGULAR[refs]
    for launch in found:
        assert_fits(launch, tmp_path)


TRIPLETS = [(80, False, 0.0), (90, True, 0.0), (90, False, 1.0), (100, True, 1.0)]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("distance", "refs"), [("euclidean", False), ("cosine", True)])
@pytest.mark.parametrize("loss", ["triplet_hard", "triplet_easy_positive_semihard"])
def test_one_mined_triplet_with_swap_fits(
    loss: str, distance: str, refs: bool, capability: int, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(LOSSES, loss, (0.2, 1.0, 1.0))
    found = launches(monkeypatch, lambda: step(loss, distance, refs), capability)
    assert {"of_mined_kernel", "swapped_kernel"} <= {launch.kernel.__name__ for launch in found}
    for launch in found:
        assert_panels_fit(launch, tmp_path)


@pytest.mark.parametrize(("capability", "refs", "swap"), TRIPLETS, ids=str)
@pytest.mark.parametrize("loss", ["triplet_all", "triplet_semihard"])
def test_triplets_fit(
    loss: str, capability: int, refs: bool, swap: float, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(LOSSES, loss, (0.2, 1.0, swap))
    found = launches(monkeypatch, lambda: step(loss, refs=refs), capability)
    names = {launch.kernel.__name__ for launch in found}
    own = {"runs_kernel", "triplets_kernel", "coefficients_kernel", "near_triplets_kernel"}
    own |= {"third_weights_kernel"} if swap and refs else set()
    assert {"distances_kernel", "triplet_weights_kernel", *own} <= names
    for launch in found:
        assert_fits(launch, tmp_path)


# Kernels that losses have for themselves whose weights have a panel of their own.
OF_OWN_PANELS = {
    "lifted_structure_original": {
        "ends_kernel",
        "lifted_terms_kernel",
        "by_ends_kernel",
        "lifted_weights_kernel",
        "near_sums_kernel",
    },
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", OF_OWN_PANELS)
def test_losses_of_own_panels_fit(
    loss: str, refs: bool, capability: int, monkeypatch: Any, tmp_path: Path
) -> None:
    found = launches(monkeypatch, lambda: step(loss, "euclidean", refs), capability)
    assert {launch.kernel.__name__ for launch in found} >= OF_OWN_PANELS[loss]
    for launch in found:
        # From sm_90 on, with half of the registers left and the same for half of the tile: no
        # numbers of pairs.
        two_ways = launch.kernel.__name__ in ("ends_kernel", "by_ends_kernel")
        stack = 8 if two_ways else 0
        assert_fits(launch, tmp_path, stack=stack)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("distance", ["euclidean", "dot"])
def test_first_pairs_fit(distance: str, capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    found = launches(monkeypatch, lambda: step("n_pairs", distance), capability)
    names = {launch.kernel.__name__ for launch in found}
    assert {"partners_kernel", "slots_kernel", "pack_pairs_kernel", "unpack_pairs_kernel"} <= names
    for launch in found:
        assert_panels_fit(launch, tmp_path)


@pytest.mark.parametrize(("capability", "refs", "swap"), TRIPLETS, ids=str)
def test_drawn_triplets_fit(
    capability: int, refs: bool, swap: float, monkeypatch: Any, tmp_path: Path
) -> None:
    loss = "triplet_distance_weighted"
    monkeypatch.setitem(LOSSES, loss, (0.2, 1.0, swap, *LOSSES[loss][3:]))
    found = launches(monkeypatch, lambda: step(loss, refs=refs), capability)
    names = {launch.kernel.__name__ for launch in found}
    own = {"shares_kernel", "drawn_terms_kernel", "drawn_weights_kernel"}
    own |= {"drawn_thirds_kernel"} if swap and refs else set()
    assert own <= names
    for launch in found:
        assert_fits(launch, tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("loss", "distance", "refs"),
    [
        ("contrastive", "euclidean", False),
        ("margin", "euclidean", True),
        ("sup_con", "cosine", True),
        ("proxy_anchor", "sqeuclidean", True),
        ("triplet_all", "euclidean", True),
        ("triplet_semihard", "cosine", False),
        ("angular", "dot", False),
        ("n_pairs", "dot", False),
    ],
)
def test_statistics_fit(
    loss: str, distance: str, refs: bool, capability: int, monkeypatch: Any, tmp_path: Path
) -> None:
    """Without spills, and with no number that passes between threads in the loop over most
    tiles."""
    found = launches(monkeypatch, lambda: step(loss, distance, refs, statistics=True), capability)
    (sweep,) = [launch for launch in found if _sweeps_for_statistics(launch)]
    own = {"anchor_statistics_kernel", "sum_statistics_kernel", "triplets_kernel"}
    told = [launch for launch in found if launch.kernel.__name__ in own]
    assert len(told) == 2 + loss.startswith("triplet_")
    for launch in (sweep, *told):
        assert_fits(launch, tmp_path)
    if CHECKED:
        loop = "\n".join(main_loop(sweep, tmp_path))
        assert not any(slow in loop for slow in ("BAR", "SHFL", "LDS", "STS"))


def _sweeps_for_statistics(launch: Launch) -> bool:
    return launch.arguments.get("visit") is POLICIES["statistics"].visit


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_batches_of_every_size_share_kernels(refs: bool, monkeypatch: Any) -> None:
    """The last batch of an epoch, and another temperature, compile nothing."""

    def call(*sizes: int) -> None:
        for number, rows in enumerate(sizes):
            monkeypatch.setitem(LOSSES, "margin", (0.2 + number,))
            step("margin", refs=refs, rows=rows)

    alone = launches(monkeypatch, lambda: call(200), 90)
    together = launches(monkeypatch, lambda: call(200, 208, 17, 1), 90)
    assert len(together) == len(alone) == 7


@pytest.mark.parametrize("loss", ["triplet_all", "triplet_semihard"])
def test_triplets_of_every_size_share_kernels(loss: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(LOSSES, loss, (0.2, 0.0, 1.0))

    def call(*sizes: int) -> None:
        for rows in sizes:
            step(loss, refs=True, rows=rows)

    alone = launches(monkeypatch, lambda: call(200), 90)
    together = launches(monkeypatch, lambda: call(200, 208, 17, 1), 90)
    assert len(together) == len(alone)


def test_draws_of_every_size_and_seed_share_kernels(monkeypatch: Any) -> None:
    """And steps of one size one kind, although each of them has a seed of its own."""
    loss, seeds = "triplet_distance_weighted", (3.0, 0.0, 1.0, 2.0**53 - 1)

    def call(sizes: tuple[int, ...], seeds: tuple[float, ...]) -> None:
        for rows in sizes:
            for seed in seeds:
                monkeypatch.setitem(LOSSES, loss, (0.2, 0.0, 1.0, 0.5, 1.4, seed))
                step(loss, refs=True, rows=rows)

    monkeypatch.setattr(kinds, "_kinds", {})
    alone = launches(monkeypatch, lambda: call((200,), seeds[:1]), 90)
    together = launches(monkeypatch, lambda: call((200, 208, 17, 1), seeds), 90)
    assert len(together) == len(alone)
    assert len(kinds._kinds) == 4
