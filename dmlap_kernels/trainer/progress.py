"""What a person sees of a running training."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from dmlap_kernels.extras import require

# Of the time of the steps.
_WORTH_TELLING = 0.05


class Progress:
    """An observer of a `Trainer`: a progress bar on a terminal, else one line an evaluation.

    Args:
        total: steps of the run.
        done: steps already done.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total = total
        self._start = done
        self._began = time.monotonic()
        self._loss: float | None = None
        self._violated = 0.0
        self._recall: float | None = None
        self._speed = ""
        self._last = {"seconds": 0.0, "waited": 0.0}
        self._bar: Any = None
        # None where the caller has closed it, as `2>&-` and services do.
        if sys.stderr is not None and sys.stderr.isatty():
            tqdm = require("tqdm", purpose="the progress bar").tqdm
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_step(self, step: int, loss: float, violated: float) -> None:
        # Smoothed over some ten steps, for single batches jump.
        if self._loss is None:
            self._loss, self._violated = loss, violated
        self._loss += 0.1 * (loss - self._loss)
        self._violated += 0.1 * (violated - self._violated)
        if self._bar is not None:
            self._bar.update(1)
            if step % 5 == 0:
                self._bar.set_postfix_str(self._summary(), refresh=False)

    def on_log(self, entry: dict[str, float]) -> None:
        """Take note of the speed; `on_step` has shown the rest."""
        seconds, waited = (entry[name] - self._last[name] for name in self._last)
        self._last = {name: entry[name] for name in self._last}
        self._speed = f"{entry['images_per_second']:,.0f} images/s"
        if (share := waited / max(seconds, 1e-9)) >= _WORTH_TELLING:
            self._speed += f", {share:.0%} of the time waiting for them"

    def on_evaluation(self, entry: dict[str, float]) -> None:
        self._recall = entry["recall@1"]
        step = int(entry["step"])
        if self._bar is not None:
            self._bar.set_postfix_str(self._summary())
            return
        text = f"step {step}/{self._total}  {self._summary()}"
        if step > self._start:
            each = (time.monotonic() - self._began) / (step - self._start)
            text += f"  time left {_clock(each * (self._total - step))}"
        if sys.stderr is not None:  # else print would take the output for it
            print(text, file=sys.stderr, flush=True)

    def _summary(self) -> str:
        parts = []
        if self._loss is not None:
            parts += [f"loss {self._loss:.4f}", f"violated {100 * self._violated:.1f} %"]
        if self._recall is not None:
            parts.append(f"recall@1 {self._recall:.3f}")
        if self._speed:
            parts.append(self._speed)
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
