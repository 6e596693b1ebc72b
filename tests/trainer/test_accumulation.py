"""Steps of several batches, and numbers that stay on the device until they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

from dmlap_kernels.trainer import NonFiniteLoss, Trainer
from dmlap_kernels.trainer.checkpoint import load_checkpoint
from dmlap_kernels.trainer.log import StepLog
from dmlap_kernels.trainer.optimization import build_optimizer
from tests.trainer.helpers import TIMES, DropoutEncoder, TinyEncoder, quick_config, tiny_data


def _entries(trainer: Trainer) -> list[dict[str, float]]:
    history = trainer.history["train"]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in history]


@pytest.mark.parametrize("chunk", [None, 5])
def test_the_loss_of_a_step_is_the_mean_over_its_batches(chunk: int | None) -> None:
    torch.manual_seed(0)
    encoder = TinyEncoder()
    config = quick_config(accumulate=3, classes="uniform", chunk_size=chunk)
    trainer = Trainer(config, tiny_data(), encoder=encoder)
    before = [p.detach().clone() for p in encoder.parameters()]
    trainer.train_step()
    found = [p.grad.clone() for p in encoder.parameters()]
    trainer.encoder.load_state_dict(dict(zip(encoder.state_dict(), before, strict=True)))
    encoder.zero_grad()
    losses, drawn = [], set()
    for part in range(3):
        batch = trainer.sampler.batch(0, trainer.pinned.indices, None, part)
        images = trainer.loader.again((0, part), batch)
        losses.append(trainer.objective(encoder(images), batch.labels, batch.representatives)[0])
        drawn.add(tuple(batch.indices.tolist()))
    assert len(drawn) == 3
    mean = sum(losses) / 3
    mean.backward()
    for one, parameter in zip(found, encoder.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-5, atol=1e-7)
    assert trainer.history["train"][0]["loss"] == pytest.approx(mean.item(), rel=1e-6)


def test_steps_of_several_batches_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    config = quick_config(accumulate=2, steps=12)
    runs = []
    for workers, stop in ((0, 12), (2, 5)):
        torch.manual_seed(1)
        out = tmp_path / str(workers)
        trainer = Trainer(config, tiny_data(), encoder=DropoutEncoder(), out=out, workers=workers)
        for _ in range(stop):
            trainer.train_step()
        trainer.save()
        trainer.loader.close()
        if stop < 12:
            trainer = Trainer.resume(out, tiny_data(), encoder=DropoutEncoder(), workers=1)
            trainer.run()
        runs.append((trainer.encoder.state_dict(), _entries(trainer)))
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
    assert runs[0][1] == runs[1][1]


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are read at entries of the log alone, and never more than 4 steps of them."""
    full = property(lambda log: bool(log._held) and log._held[-1].key[0] - log._held[0].key[0] >= 3)
    monkeypatch.setattr(StepLog, "full", full)


def test_numbers_read_later_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for later in (False, True):
        steps = []

        class Watcher:
            def on_step(self, step: int, loss: float, violated: float) -> None:
                steps.append((step, loss, violated))  # noqa: B023

            def on_log(self, entry: dict[str, float]) -> None: ...

            def on_evaluation(self, entry: dict[str, float]) -> None: ...

        if later:
            _as_on_a_gpu(monkeypatch)
        torch.manual_seed(1)
        config = quick_config(steps=450, eval_every=450, method="plain")
        trainer = Trainer(config, tiny_data(), encoder=TinyEncoder(), observers=[Watcher()])
        trainer.run()
        found.append((steps, _entries(trainer)))
    assert found[0] == found[1]
    assert [step for step, *_ in found[1][0]] == list(range(1, 451))


def test_a_bad_loss_read_later_is_named_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_on_a_gpu(monkeypatch)
    data = tiny_data()
    images = data.train.images.float() / 255
    images[17, 0, 3, 3] = float("nan")
    train = type(data.train)(images, data.train.labels, data.train.class_names)
    data = type(data)("tiny", train, data.test)
    # An entry of the log every fourth step, a checkpoint after every step.
    config = quick_config(steps=400, eval_every=400, seed=3, method="plain")
    trainer = Trainer(config, data, encoder=TinyEncoder(), out=tmp_path, checkpoint_every=1)
    with pytest.raises(NonFiniteLoss, match=r"sample 17 \(class 'c2'.*its image holds") as caught:
        trainer.run()
    tensors, state = load_checkpoint(tmp_path)
    assert state["step"] == caught.value.step - 1
    assert all(t.isfinite().all() for n, t in tensors.items() if n.startswith("model"))


@pytest.mark.parametrize(("options", "how"), [({}, "foreach"), ({"fused": True}, "fused")])
def test_optimizers_are_foreach_on_the_cpu_unless_told(options: dict, how: str) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = build_optimizer("adam", [{"params": parameters}], 1e-3, options)
    assert {name for name in ("foreach", "fused") if optimizer.defaults[name]} == {how}
