"""`dmlap train` as torchrun starts it: one that is killed, one that is interrupted."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from dmlap_kernels.trainer import Trainer
from dmlap_kernels.trainer.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

TRAIN = "-m dmlap_kernels train --data digits --encoder conv:4,4 --device cpu"
SMALL = "--classes-per-batch 4 --samples-per-class 3 --schedule constant --checkpoint-every 5"


def _start(command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def _wait_for_steps(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if (out / "checkpoint.safetensors").exists() and load_checkpoint(out)[1]["step"] >= steps:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


def test_a_killed_process_ends_the_run_and_leaves_its_checkpoint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / "run"
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = f"{TRAIN} {SMALL} --steps 1000000 --out {out}"
    first, second = (_start(command, RANK=r, LOCAL_RANK=r, **place) for r in "01")
    _wait_for_steps(out, 5, first)
    second.kill()
    said, complained = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 1
    assert said.count("training classes") == 1
    assert "Traceback" not in complained
    assert re.search(
        r"^dmlap train: stopped: another process of the run has ended, .*; continue from the last "
        rf"checkpoint with: dmlap train --resume {out}$",
        complained,
        re.M,
    )
    step = load_checkpoint(out)[1]["step"]
    assert step >= 5 and step % 5 == 0
    trainer = Trainer.resume(out)
    trainer.train_step()
    assert trainer.step == step + 1


def test_torchrun_hands_on_an_interrupt(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = f"-m torch.distributed.run --standalone --nproc-per-node 2 {TRAIN} {SMALL}"
    process = _start(f"{run} --steps 1000000 --out {out}")
    _wait_for_steps(out, 5, process)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=90)
    assert process.returncode != 0
    assert said.count("training classes") == 1 and "the first of 2 processes" in said
    told = re.findall(r"^dmlap train: interrupted after step (\d+) of", complained, re.M)
    assert len(told) == 1 and int(told[0]) == load_checkpoint(out)[1]["step"]
