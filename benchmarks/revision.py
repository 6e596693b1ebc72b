"""Another revision of the package, built once and measured in a process of its own.

Two versions of one package do not fit into one process. The other one runs the benchmarks of the
working tree, which take turns with it as with every other candidate: it measures its own turns, so
that the way to it and back costs nothing.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.batch import Absent
from benchmarks.candidates import make
from benchmarks.measure import WARM_UP_ROWS, call_time

ROOT = Path(__file__).resolve().parents[1]
# Its package comes first on the path, these benchmarks last.
WORKER = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); "
    "from benchmarks.revision import serve; serve(int(sys.argv[3]))"
)
# Threads that wait for their next work spin for a moment, on the cores of whoever is measured.
CALM = 5e-3  # seconds


class Refused(RuntimeError):
    """The revision does not exist or does not build."""


def commit_of(revision: str) -> str:
    """The commit that a branch, a tag or the start of a hash names."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options"]
    done = subprocess.run(
        [*command, f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused(f"{revision!r} names no commit of {ROOT}")
    return done.stdout.strip()


def build(commit: str) -> Path:
    """The folder that the package of a commit is installed in, without its CUDA half.

    It stays under build/, by commit and by what it was built for.
    """
    tag = f"{sys.implementation.cache_tag}-numpy{np.__version__}"
    folder = ROOT / "build" / "revisions" / f"{commit}-{tag}"
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    sources = unfinished / "sources"
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(sources, filter="data")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*install, "--target", str(unfinished / "packages"), str(sources)],
        env=os.environ | {"DMLAP_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(unfinished)
        raise Refused(f"commit {commit} does not build:\n{done.stdout}{done.stderr}"[-4000:])
    shutil.rmtree(sources)
    unfinished.rename(folder)
    return folder


class RemoteStep:
    """A step of the other process. A call returns what the step returns."""

    def __init__(self, ask: Callable[..., Any], key: tuple[Any, ...]) -> None:
        self._ask, self._key = ask, key

    def __call__(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(part) for part in self._ask("call", self._key, 1))

    def call_time(self, calls: int) -> float:
        """Seconds a call, by the clock of the other process."""
        return self._ask("time", self._key, calls)


class Revision:
    """The package of a commit in another process, which ends with `close`.

    Attributes:
        commit: its hash.
        package: the file that the other process imported.

    Raises:
        Refused: there is no such commit, it does not build, or its process has died.
    """

    def __init__(self, revision: str) -> None:
        self.commit = commit_of(revision)
        packages = build(self.commit) / "packages"
        self._connection, theirs = Pipe()
        with theirs:
            end = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(packages), str(ROOT), str(end)],
                pass_fds=[end],
                cwd=ROOT.root,
            )
        self.package: str = self._ask("threads", torch.get_num_threads())

    def make(self, op: str, rows: int, features: int) -> RemoteStep:
        """A step like that of `benchmarks.candidates.make`; raises `Absent`."""
        key = (op, rows, features)
        self._ask("make", key)
        return RemoteStep(self._ask, key)

    def _ask(self, *question: Any) -> Any:
        try:
            self._connection.send(question)
            failure, answer = self._connection.recv()
        except (EOFError, BrokenPipeError):
            raise Refused(f"the process of commit {self.commit} has died") from None
        if failure:
            raise Absent(f"at {self.commit[:9]}: {failure}")
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


def serve(end: int) -> None:
    """The other process: answers until nobody asks any more."""
    import dmlap_kernels

    steps: dict[tuple[Any, ...], Callable[[], tuple[Tensor, ...]]] = {}

    def answer(what: str, value: Any, calls: int = 1) -> Any:
        if what == "threads":
            torch.set_num_threads(value)
            return dmlap_kernels.__file__
        if what == "make":
            op, rows, features = value
            steps.clear()  # those of earlier comparisons
            steps[value] = make(op, "ours", rows, features)
            make(op, "ours", WARM_UP_ROWS, features)()
            return None
        if what == "call":
            return [part.detach().numpy() for part in steps[value]()]
        time.sleep(CALM)
        seconds = call_time(steps[value], calls)
        time.sleep(CALM)
        return seconds

    with Connection(end) as connection:
        while True:
            try:
                question = connection.recv()
            except EOFError:
                return
            try:
                reply = ("", answer(*question))
            except Exception as error:
                reply = (f"{type(error).__name__}: {error}", None)
            connection.send(reply)
