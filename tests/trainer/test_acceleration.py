"""Mixed precision, compiled encoders, channels last: the same training, saved and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors")

from dmlap_kernels.encoders import ConvEncoder
from dmlap_kernels.trainer import Trainer
from dmlap_kernels.trainer.checkpoint import load_checkpoint
from tests.trainer.helpers import quick_config, tiny_data


class Watched(ConvEncoder):
    """Notes the dtype of what its last layer computes while it trains."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__((1, 8, 8), 8, widths=(4, 8))
        self.seen: set[torch.dtype] = set()
        self.head.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self.training:
            self.seen.add(output.dtype)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("amp, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_encoder_trains_in_that_precision(
    amp: str, dtype: torch.dtype, chunk: int | None
) -> None:
    encoder = Watched()
    config = quick_config(amp=amp, steps=8, chunk_size=chunk)
    trainer = Trainer(config, tiny_data(), encoder=encoder)
    # Evaluation and mining, which put the encoder into evaluation mode, are in float32.
    results = trainer.run()
    assert encoder.seen == {dtype}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in encoder.parameters())
    assert results["recall@1"] > 0
    plain = Trainer(quick_config(steps=8), tiny_data(), encoder=Watched())
    plain.run()
    for found, wanted in zip(trainer.history["train"], plain.history["train"], strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=0.1, abs=0.05)


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    trainer = Trainer(quick_config(amp="fp16"), tiny_data(), encoder=Watched())
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.clone() for p in trainer.encoder.parameters()]
    trainer.train_step()
    assert all(map(torch.equal, before, trainer.encoder.parameters()))
    assert trainer.precision.scaler.get_scale() == 2.0**39


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(amp: str, tmp_path: Path) -> None:
    config = quick_config(amp=amp, steps=10, schedule="constant", encoder="conv:4,8")
    whole = Trainer(config, tiny_data(), out=tmp_path / "whole")
    whole.run()
    half = Trainer(config, tiny_data(), out=tmp_path / "half", checkpoint_every=4)
    with pytest.raises(Exception, match="interrupted"):
        half.run(stop=lambda: half.step == 4)
    scale = load_checkpoint(tmp_path / "half")[1]["scaler"]
    assert (scale != {}) == (amp == "fp16") and json.dumps(scale)
    resumed = Trainer.resume(tmp_path / "half", tiny_data())
    resumed.run()
    for a, b in zip(whole.encoder.parameters(), resumed.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.precision.state() == whole.precision.state()


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_compiled_encoder_trains_alike(chunk: int | None) -> None:
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        config = quick_config(compile=compile, steps=4, chunk_size=chunk, encoder="conv:4,8")
        trainer = Trainer(config, tiny_data())
        trainer.run()
        losses.append([entry["loss"] for entry in trainer.history["train"]])
        assert not any("_orig_mod" in name for name in trainer.encoder.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_channels_last() -> None:
    seen = []

    class Strides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(images.is_contiguous(memory_format=torch.channels_last))
            return self.head(self.conv(images.expand(-1, 1, -1, -1)).mean((2, 3)))

    encoder = Strides()
    trainer = Trainer(quick_config(channels_last=True, steps=2), tiny_data(), encoder=encoder)
    trainer.run()
    assert seen and all(seen)
    assert encoder.conv.weight.is_contiguous(memory_format=torch.channels_last)
