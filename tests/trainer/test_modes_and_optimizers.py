"""What the user gives is kept as it is: modes of modules, groups and state of optimizers."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmlap_kernels.trainer import CheckpointError, Interrupted, Trainer, embed, evaluate
from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer.nested_state import pack, unpack
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data


class Normed(nn.Module):
    """Two batch normalisations and a dropout, of which the user may freeze some."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))
        self.second = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images))


def _modes(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


FROZEN = {"none": (), "one": ("first.2",), "several": ("first", "second.1"), "all": ("",)}


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.filterwarnings("ignore:the encoder is in evaluation mode")
def test_every_module_stays_in_the_mode_it_was_given_in(frozen: str, chunk: int | None) -> None:
    encoder = Normed()
    for name in FROZEN[frozen]:
        encoder.get_submodule(name).eval()
    wanted = _modes(encoder)
    statistics = encoder.first[2].running_mean.clone()
    config = quick_config(chunk_size=chunk, representative_choice="medoid", steps=12)
    trainer = Trainer(config, tiny_data(), encoder=encoder)
    assert _modes(encoder) == wanted
    trainer.run()
    assert _modes(encoder) == wanted
    held = not encoder.first[2].training
    assert torch.equal(encoder.first[2].running_mean, statistics) is held


def test_embedding_helpers_put_modes_back() -> None:
    encoder, split = Normed(), tiny_data().test
    encoder.first[2].eval()
    wanted = _modes(encoder)
    embed(encoder, split)
    evaluate(encoder, split)
    assert _modes(encoder) == wanted

    class Broken(Normed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError

    encoder = Broken()
    encoder.first[2].eval()
    with pytest.raises(ArithmeticError):
        embed(encoder, split)
    assert _modes(encoder) == wanted


def test_an_encoder_in_evaluation_mode_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match=r"call encoder.train\(\) before"):
        Trainer(quick_config(), tiny_data(), encoder=Normed().eval())


def test_frozen_weights_are_left_out_everywhere() -> None:
    encoder = Normed()
    encoder.first.requires_grad_(False)
    frozen = [p.clone() for p in encoder.first.parameters()]
    config = quick_config(steps=12, optimizer="adamw", optimizer_options={"weight_decay": 1.0})
    trainer = Trainer(config, tiny_data(), encoder=encoder)
    learned = [id(p) for p in encoder.second.parameters()]
    groups = trainer.optimizer.param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(learned)
    assert [id(p) for p in trainer.projection.parameters] == learned
    trainer.run()
    assert all(map(torch.equal, frozen, encoder.first.parameters()))


def _two_groups(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The first parameter at a rate of its own, and whatever the loss has."""
    (first, *others), *loss = groups[0]["params"], *groups[1:]
    made = [{"params": [first], "lr": 0.5}, {"params": others, "lr": 0.05}, *loss]
    return torch.optim.SGD(made, lr=0.2)


def _rates(steps: int = 1, **given: Any) -> list[list[float]]:
    config = quick_config(steps=4, **given.pop("config", {}))
    trainer = Trainer(config, tiny_data(), encoder=TinyEncoder(), optimizer=_two_groups, **given)
    found = []
    for _ in range(steps):
        trainer.train_step()
        found.append([float(group["lr"]) for group in trainer.optimizer.param_groups])
    return found


def test_a_schedule_scales_the_rate_of_each_group() -> None:
    assert _rates(2, config={"schedule": "constant"}) == [[0.5, 0.05]] * 2
    cosine = [[0.5, 0.05], [0.5 * 0.8535533, 0.05 * 0.8535533], [0.25, 0.025]]
    for found, wanted in zip(_rates(3, config={"schedule": "cosine"}), cosine, strict=True):
        assert found == pytest.approx(wanted)
    # The loss's own parameters keep their factor.
    own = {"schedule": "constant", "loss": "proxy_nca", "loss_rate": 3.0}
    assert _rates(config=own)[0] == pytest.approx([0.5, 0.05, 0.6])
    # One of the caller's own is the rate of the first group.
    found = _rates(2, schedule=lambda step: 1 / (1 + step))
    assert found == [pytest.approx([1.0, 0.1]), pytest.approx([0.5, 0.05])]


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    rate = torch.tensor(0.5)
    trainer = Trainer(
        quick_config(steps=4, schedule="cosine"),
        tiny_data(),
        encoder=TinyEncoder(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=rate),
    )
    trainer.train_step()
    trainer.train_step()
    assert trainer.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.5 * 0.8535533)


class Odd(torch.optim.Optimizer):
    """Keeps state of every kind, in its groups and of its parameters, and depends on all of it."""

    def __init__(self, groups: Any, lr: float = 0.1) -> None:
        super().__init__(
            groups, {"lr": lr, "k": 0, "weight_sum": 0.0, "kind": "first", "best": None}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["weight_sum"] += 1 / 3 * group["k"]
            group["kind"] = "later" if group["k"] > 3 else "first"
            group["best"] = (group["k"], [group["weight_sum"], True, None])
            group["past"] = torch.full((2,), group["weight_sum"], dtype=torch.float64)
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["scale"] = state.get("scale", 1.0) * 0.9
                state["name"] = f"step {state['step']}"
                state["double"] = state.get("double", 0) + p.grad.double()
                state["counts"] = state.get("counts", torch.zeros(2, dtype=torch.int64)) + 1
                state["nested"] = {
                    "flags": [state["step"] > 2, None],
                    "last": {"grad": p.grad.clone()},
                }
                state.setdefault("recent", deque(maxlen=2)).append(float(p.grad.sum()))
                late = 0.5 if group["kind"] == "later" else 1.0
                pull = state["double"] * state["scale"] + sum(state["recent"])
                pull = pull + state["nested"]["last"]["grad"] * int(state["counts"][0])
                moved = (pull / (1 + group["weight_sum"] + group["best"][0])).to(p.dtype)
                p.sub_(moved * group["lr"] * late * (2.0 if state["name"] == "step 3" else 1.0))


class WithAttributes(torch.optim.SGD):
    """Has an attribute besides, which it saves by a ``state_dict`` of its own."""

    calls = 0

    def step(self, closure: Any = None) -> None:
        self.calls += 1
        for group in self.param_groups:
            group["lr"] *= 1 + self.calls
        super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        super().load_state_dict({n: v for n, v in state.items() if n != "calls"})


def _adamw(groups: Any) -> torch.optim.Optimizer:
    (first, *others) = groups[0]["params"]
    made = [{"params": [first], "lr": 0.01, "betas": (0.8, 0.9)}, {"params": others}]
    return torch.optim.AdamW(made, lr=0.003, amsgrad=True)


OPTIMIZERS = {
    "odd": Odd,
    "attributes": lambda groups: WithAttributes(groups, lr=1e-3, momentum=0.9),
    "adamw": _adamw,
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.01),
    "radam": lambda groups: torch.optim.RAdam(groups, lr=0.01),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=0.01),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.01),
    "tensor rate": lambda groups: torch.optim.Adam(groups, lr=torch.tensor(0.01), capturable=False),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("at", [0, 7])
def test_a_resumed_run_has_the_optimizer_of_an_uninterrupted_one(
    kind: str, at: int, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"optimizer": OPTIMIZERS[kind]}
    config = quick_config(steps=12, classes="uniform")

    def encoder() -> nn.Module:
        torch.manual_seed(5)
        return TinyEncoder()

    whole = Trainer(config, tiny_data(), encoder=encoder(), **given)
    whole.run()
    first = Trainer(config, tiny_data(), encoder=encoder(), out=tmp_path, **given)
    with pytest.raises(Interrupted):
        first.run(stop=lambda: first.step >= at)
    second = Trainer.resume(tmp_path, tiny_data(), encoder=encoder(), **given)
    second.run()
    assert all(map(torch.equal, whole.encoder.parameters(), second.encoder.parameters()))
    mine, theirs = (files.pack_optimizer(t.optimizer) for t in (second, whole))
    assert mine[0] == theirs[0]
    assert mine[1].keys() == theirs[1].keys()
    for name, tensor in mine[1].items():
        assert tensor.dtype == theirs[1][name].dtype
        assert torch.equal(tensor, theirs[1][name])


def test_state_in_another_dtype_than_the_weights_survives() -> None:
    """load_state_dict of torch casts it to that of the weights."""
    model = nn.Linear(3, 2).bfloat16()

    def steps(optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(4, 3).bfloat16()).square().sum().backward()
        optimizer.step()

    optimizer = Odd(model.parameters())
    steps(optimizer)
    values, tensors = files.pack_optimizer(optimizer)
    other = Odd(model.parameters())
    files.load_optimizer(other, {n: t.clone() for n, t in tensors.items()}, values)
    state = other.state[model.weight]
    assert state["double"].dtype == torch.float64 and state["counts"].dtype == torch.int64
    assert torch.equal(state["double"], optimizer.state[model.weight]["double"])
    assert state["name"] == "step 1" and state["recent"].maxlen == 2


def test_an_optimizer_with_other_groups_is_refused_on_resume(tmp_path: Path) -> None:
    Trainer(quick_config(), tiny_data(), encoder=TinyEncoder(), out=tmp_path).save()
    with pytest.raises(CheckpointError, match="the optimizer is not the one of the run"):
        Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder(), optimizer=_two_groups)


def test_packing_keeps_every_type() -> None:
    shared = torch.arange(3)
    value = {
        "numbers": [1, -(2**70), 0.1 + 0.2, float("inf"), 1j, True, False, None],
        ("a", 1): {2: {"x": (), "y": ({},)}},
        "text": "\udcff and \n",
        "tensors": [shared, shared, torch.zeros(()), torch.empty(0, 3)],
        "numpy": [np.float32(0.1), np.float64(0.1), np.int16(-3), np.bool_(True)],
        "others": (torch.float16, torch.device("cpu"), {1, 2}, deque([1, 2], maxlen=3)),
    }
    tensors: dict[str, torch.Tensor] = {}
    back = unpack(pack(value, tensors, "it"), tensors, torch.device("cpu"))
    assert [type(v) for v in back["numpy"]] == [type(v) for v in value["numpy"]]
    array = unpack(pack(np.arange(3.0), tensors, "array"), tensors, torch.device("cpu"))
    assert array.dtype == np.float64 and array.tolist() == [0, 1, 2]
    one, other = back.pop("tensors"), value.pop("tensors")
    assert back == value
    assert [type(v) for v in back["numbers"]] == [type(v) for v in value["numbers"]]
    assert one[0] is one[1] and all(map(torch.equal, one, other))
    with pytest.raises(TypeError, match=r"it.0 is of type object, which a checkpoint cannot hold"):
        pack([object()], {}, "it")
    with pytest.raises(TypeError, match="not dense"):
        pack(torch.eye(2).to_sparse(), {}, "it")
