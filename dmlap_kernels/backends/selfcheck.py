"""``auto`` takes a kernel once it has proved itself on the chip at hand.

The first call of a kind on a device runs `planted.check` there, a few milliseconds once kernels are
compiled. What came out is kept in the user's cache directory (`cache`) for the chip, its driver and
the versions of PyTorch, Triton and this package, so that later processes need not check again. The
backends of `TRUSTED` are tested where they are built. ``DMLAP_SELFCHECK=0`` switches it off.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from typing import Any, NamedTuple

import torch

from dmlap_kernels.backends import cache, planted
from dmlap_kernels.backends.chips import Chip, chip_at
from dmlap_kernels.backends.interface import Backend
from dmlap_kernels.problem import PairSpec

# Plain PyTorch is the judge; the kernels of the CPU are compiled and tested as they are.
TRUSTED = ("torch", "cpu")
# A check that ended its process twice would end the next one as well.
_MOST_DEATHS = 2


class Subject(NamedTuple):
    """What is checked at once: calls that run the same kernels."""

    backend: str
    op: str
    distance: str
    normalize: bool
    dtype: str

    @property
    def words(self) -> str:
        kind = [self.distance] if self.distance else []
        kind += ["normalized"] if self.normalize else []
        return f"{self.op} ({', '.join([*kind, self.dtype])})"

    @property
    def file(self) -> str:
        unit = "unit-" if self.normalize else ""
        parts = (self.backend, self.op, f"{unit}{self.distance}", self.dtype)
        return f"check-{'-'.join(filter(None, parts))}.json"


class Verdict(NamedTuple):
    """What a check came to.

    Attributes:
        passed: whether the backend is taken.
        why: what differed, empty where nothing did.
        when: the day, as in ``"2026-11-26"``.
        seconds: that it took, compilation included.
        kept: the file that later processes read it from, empty where none could be written.
    """

    passed: bool
    why: str
    when: str
    seconds: float
    kept: str

    @property
    def words(self) -> str:
        where = self.kept or "of this process"
        result = "passed" if self.passed else "failed"
        said = f"self-check {result} on {self.when} in {self.seconds:.2g} s, {where}"
        return said if self.passed else f"{said}: {self.why}"


def switched_off() -> bool:
    return os.environ.get("DMLAP_SELFCHECK") == "0"


def needed(backend: Backend) -> bool:
    return backend.name not in TRUSTED and not switched_off()


def subject_of(backend: Backend, spec: PairSpec | None, dtype: torch.dtype) -> Subject:
    name = str(dtype).removeprefix("torch.")
    if spec is None:
        return Subject(backend.name, "search", "", False, name)
    op = planted.variant_of(spec)
    return Subject(backend.name, op, spec.distance, spec.normalize, name)


def verdict(
    backend: Backend,
    judge: Backend,
    spec: PairSpec | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    run: bool,
    anew: bool = False,
) -> Verdict | None:
    """What is known of a backend for a kind of call on a device.

    Args:
        backend, judge: the one in question, and plain PyTorch.
        spec, dtype: of the call.
        device: with its index.
        run: check it now if nothing is known; without, the answer is None then.
        anew: check it whatever is known.
    """
    subject = subject_of(backend, spec, dtype)
    chip = chip_at(device)
    found = None if anew else _known.get((subject, device)) or _remembered(chip, subject)
    if found is None and run:
        found = _checked(backend, judge, spec, dtype, device, chip, subject)
    if found is not None:
        _known[subject, device] = found
    return found


_known: dict[tuple[Subject, torch.device], Verdict] = {}


def remembered(chip: Chip) -> list[tuple[Subject, Verdict]]:
    """All that the cache directory holds of a chip."""
    found = []
    for name in cache.names(chip, "check-*.json"):
        content = cache.read(chip, name)
        try:
            subject = Subject(*(content or {})["subject"])
        except (KeyError, TypeError):
            continue
        if subject.file == name and (known := _remembered(chip, subject)) is not None:
            found.append((subject, known))
    return found


def _remembered(chip: Chip | None, subject: Subject) -> Verdict | None:
    content = None if chip is None else cache.read(chip, subject.file)
    if content is None or chip is None or content.get("subject") != list(subject):
        return None
    kept = str(cache.path_of(chip, subject.file))
    try:
        if content["state"] == "begun":
            if content["deaths"] + _has_died(content) < _MOST_DEATHS:
                return None
            why = "the process that checked it ended before the check was done, twice"
            return Verdict(False, why, str(content["when"]), 0.0, kept)
        if content["state"] not in ("passed", "failed"):
            return None
        passed = content["state"] == "passed"
        return Verdict(
            passed, str(content["why"]), str(content["when"]), float(content["seconds"]), kept
        )
    except (KeyError, TypeError, ValueError):
        return None


def _has_died(content: dict[str, Any]) -> bool:
    """Whether a process that began a check is gone; of another machine's nothing is known."""
    if content.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(content["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _checked(
    backend: Backend,
    judge: Backend,
    spec: PairSpec | None,
    dtype: torch.dtype,
    device: torch.device,
    chip: Chip | None,
    subject: Subject,
) -> Verdict:
    when = datetime.date.today().isoformat()
    about = {"subject": list(subject), "when": when}
    if chip is not None:
        _note_begin(chip, subject, about)
    begin = time.perf_counter()
    keep = True
    why: str | None = "interrupted"
    try:
        # As a call sees them that is not recorded by autograd; autocast is the backends' business.
        with torch.inference_mode(False), torch.no_grad():
            why = planted.check(backend, judge, spec, dtype, device)
    except (torch.OutOfMemoryError, MemoryError):
        why, keep = "no memory was left for it", False
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        if chip is not None and (not keep or why == "interrupted"):
            cache.remove(chip, subject.file)
    seconds = time.perf_counter() - begin
    kept = None
    if keep and chip is not None:
        state = {"state": "failed" if why else "passed", "why": why or "", "seconds": seconds}
        kept = cache.write(chip, subject.file, about | state)
    return Verdict(not why, why or "", when, seconds, "" if kept is None else str(kept))


def _note_begin(chip: Chip, subject: Subject, about: dict[str, Any]) -> None:
    """So that a check that ends its process, as the crash of a compiler does, is known of."""
    before = cache.read(chip, subject.file) or {}
    deaths = 0
    if before.get("state") == "begun" and isinstance(before.get("deaths"), int):
        deaths = before["deaths"] + _has_died(before)
    mine = {"state": "begun", "deaths": deaths, "pid": os.getpid(), "host": socket.gethostname()}
    cache.write(chip, subject.file, about | mine)
