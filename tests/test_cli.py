"""The command line as a subprocess."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from dmlap_kernels.cli import main
from dmlap_kernels.trainer.checkpoint import load_checkpoint
from dmlap_kernels.trainer.progress import Progress
from tests.trainer.helpers import TIMES

PLAIN = (
    "--data=digits",
    "--samples-per-class=3",
    "--embedding-dim=8",
)
QUICK = (
    *PLAIN,
    "--projection-steps=5",
    "--hard-pool=3",
    "--hard-refresh=7",
)
# An empty folder: `python -m` would prefer what is in the current one, such as the checkout.
ELSEWHERE = tempfile.mkdtemp()
STEPS = ("--steps=80", "--eval-every=40")


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dmlap_kernels", *map(str, arguments)]


def _environment() -> dict[str, str]:
    # Two threads under pytest-xdist would wait for each other.
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        env=_environment(),
        cwd=ELSEWHERE,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        cwd=ELSEWHERE,
    )


def _wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until a checkpoint of at least ``step`` is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "checkpoint.safetensors").exists():
            if load_checkpoint(folder)[1]["step"] >= step:
                return
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"no checkpoint of step {step}: {process.communicate()}")


def _final(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    tensors, state = load_checkpoint(folder)
    for entry in state["history"]["train"]:
        for name in TIMES:
            del entry[name]
    return tensors, {k: v for k, v in state.items() if k not in TIMES}


def _assert_equal_runs(first: Path, second: Path) -> None:
    (tensors, state), (others, other_state) = _final(first), _final(second)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert state == other_state


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the subprocesses."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = _run("train", *QUICK, *STEPS, "--tensorboard", "--out", folder)
    assert "recall@1" in done.stdout and "raw pixels" in done.stdout
    assert "never seen in training" in done.stdout
    assert "images: 8 x 8 pixels, grey (--image-size)" in done.stdout
    for command in ("report", "embed", "export"):
        assert f"  dmlap {command} {folder}" in done.stdout
    assert "step 40/80" in done.stderr and "time left" in done.stderr
    return folder


def test_a_run_leaves_its_files(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {"checkpoint.safetensors", "metrics.json", "curves.png", "tensorboard"}
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["config"]["data"] == "digits"
    assert metrics["config"]["steps"] == 80
    assert 0 < metrics["map@r"] < metrics["recall@1"] <= 1
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_event_files_hold_the_history(whole: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(whole / "tensorboard"))
    found.Reload()
    metrics = json.loads((whole / "metrics.json").read_text())
    losses = [(e.step, e.value) for e in found.Scalars("train/loss")]
    assert losses == [
        (e["step"], pytest.approx(e["loss"], rel=1e-5)) for e in metrics["history"]["train"]
    ]
    recall = [(e.step, e.value) for e in found.Scalars("evaluation/recall@1")]
    assert recall[-1] == (80, pytest.approx(metrics["recall@1"], rel=1e-5))


def test_eval_prints_the_numbers_of_the_training(whole: Path) -> None:
    metrics = json.loads((whole / "metrics.json").read_text())
    assert json.loads(_run("eval", whole, "--json").stdout) == metrics["test"]
    table = _main("eval", whole, "--ks", "1,5").output
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "recall@1",
        "recall@5",
        "r_precision",
        "map@r",
    ]
    for name in ("recall@1", "map@r"):
        assert f"{name:<12}  {metrics[name]:8.4f}" in table


def test_eval_clusters_when_asked(whole: Path) -> None:
    pytest.importorskip("faiss")
    metrics = json.loads(_main("eval", whole, "--json", "--ks=1", "--clustering").output)
    assert list(metrics) == ["recall@1", "r_precision", "map@r", "nmi", "f1", "ami"]
    assert 0 < metrics["ami"] < metrics["nmi"] < 1


def test_interrupted_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    """Stopped three times: by ``kill``, by Ctrl-C, and by ``kill -9``, which leaves no time."""
    folder = tmp_path / "run"
    often = "--checkpoint-every=1"
    process = _started("train", *QUICK, *STEPS, often, "--out", folder)
    for number, step in ((signal.SIGTERM, 12), (signal.SIGINT, 30), (signal.SIGKILL, 45)):
        _wait_for_step(process, folder, step)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert not (folder / "metrics.json").exists()
        reached = load_checkpoint(folder)[1]["step"]
        assert step <= reached < 80
        if number is signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + number
            assert "Traceback" not in errors
            assert errors.strip().splitlines()[-1] == (
                f"dmlap train: interrupted after step {reached} of 80; "
                f"continue with: dmlap train --resume {folder}"
            )
        process = _started("train", "--resume", folder, "--seed=0", often)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "never seen in training" in output
    _assert_equal_runs(folder, whole)
    assert _main("train", "--resume", folder).output.strip() == (
        f"{folder} is finished: nothing to resume"
    )


def test_refusals_are_one_sentence(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked in this process: a subprocess each would take a minute."""
    monkeypatch.chdir(tmp_path)  # Where somebody trains, there may be a run of the default name.
    photos = _photos(tmp_path / "photos", tests=1)
    singles = (f"--data=folder:{photos}", "--out", tmp_path / "s")
    for arguments, named in (
        (["train", "--out", whole], "already holds a run; continue it with --resume"),
        (["train", "--resume", tmp_path], "holds no checkpoint.safetensors"),
        (["train", "--resume", whole, "--out", tmp_path], "--out cannot be given with --resume"),
        (["train", "--resume", whole, "--steps", 9], "--steps 9 differs from the run"),
        (["train", "--resume", whole, "--no-augment"], "--no-augment False differs"),
        (["train", "--method=plain", "--projection-steps=9"], "only be given with --method dmlap"),
        (["train", "--classes=uniform", "--hard-pool=9"], "only be given with --classes hard"),
        (["train", "--monitor-every=9"], "only be given with --patience"),
        (["train", "--loss-rate=9"], "only be given with a loss that has parameters of its own"),
        (["train", "--representative-pool=9"], "only be given with --representative-choice"),
        (["train", "--config=cars"], "needs --data: cars:PATH for the official layout, folder:"),
        (["train", "--patience=2"], "patience needs validation classes to watch"),
        (["train", "--data=folder:/none", "--out", tmp_path / "x"], "/none does not exist"),
        (["train", *QUICK, "--classes-per-batch=9", "--out", tmp_path / "y"], "must be in 2..5"),
        (["train", "--loss-option=margni=1", "--out", tmp_path / "z"], "margni"),
        (["train", *QUICK, "--device=tpu9", "--out", tmp_path / "v"], "device must be auto"),
        (["train", *QUICK, "--device=meta", "--out", tmp_path / "w"], "device must be auto"),
        (["train", *QUICK, f"--seed={2**70}", "--out", tmp_path / "t"], "seed must be less than"),
        (["train", *QUICK, "--seed=-1", "--out", tmp_path / "t"], "seed must be at least 0"),
        (["train", *QUICK, "--out", whole / "metrics.json" / "x"], "out must be a folder that can"),
        (["train", *QUICK, "--optimizer-option=betas=[1]", "--out", tmp_path / "u"], "do not suit"),
        (["train", *QUICK, f"--embedding-dim={10**12}", "--out", tmp_path / "q"], "out of memory"),
        (["train", *QUICK, "--hard-warmup", 10**30, "--out", tmp_path / "r"], "less than 2**63"),
        (["train", *singles, "--validation=0.4"], "none of the 2 images of 2 test classes has one"),
        (["train", "--resume", whole, "--data=glyphs"], "had other images (train, test) than"),
        (
            ["train", "--resume", whole, "--steps", 99],
            "the schedule 'one_cycle' of the run depends",
        ),
        (["eval", whole, "--device=meta"], "device must be auto"),
        (["eval", tmp_path / "none"], "holds no checkpoint.safetensors"),
        (["report", whole, tmp_path], "it is not the folder of a run"),
        (["report", whole, "--out", tmp_path], "--out takes the name of a file"),
        (["eval", whole, "--ks=0"], "ks must be one or more positive integers"),
    ):
        done = _main(*arguments)
        assert done.status == 2, arguments
        assert named in done.errors, arguments
        assert done.errors.startswith(f"dmlap {arguments[0]}: "), arguments
        assert done.errors.count("\n") == 1, done.errors


def _photos(path: Path, tests: int = 3, prefix: str = "c") -> Path:
    """Six training and two test classes, these of ``tests`` images."""
    pillow = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for part, classes, images in (("train", 6, 4), ("test", 2, tests)):
        for c in range(classes):
            (folder := path / part / f"{prefix}{part}{c}").mkdir(parents=True)
            for i in range(images):
                pixels = random.integers(0, 255, (16, 16), dtype=np.uint8)
                pillow.fromarray(pixels).save(folder / f"{i}.png")
    return path


SMALL = (
    "--samples-per-class=3",
    "--encoder=conv:4,4",
    "--embedding-dim=8",
    "--classes-per-batch=4",
)


def test_data_may_move_and_steps_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    data = _photos(tmp_path / "old")
    begin = ("train", *SMALL, "--schedule=constant")
    whole = _main(*begin, f"--data=folder:{data}", "--steps=6", "--out", tmp_path / "whole")
    assert whole.status == 0, whole.errors
    assert _main(*begin, f"--data=folder:{data}", "--steps=4", "--out", out).status == 0
    data.rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in _main("train", "--resume", out, "--steps=6").errors
    done = _main("train", "--resume", out, "--data=folder:new", "--steps=6", "--chunk-size=50")
    assert done.status == 0, done.errors
    first, second = (load_checkpoint(folder) for folder in (tmp_path / "whole", out))
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    # The path in full, so that it is found from everywhere.
    assert second[1]["config"]["data"] == f"folder:{tmp_path / 'new'}"
    assert _main("eval", out).status == 0


def test_small_classes_are_left_out_when_asked(tmp_path: Path) -> None:
    data = _photos(tmp_path / "data")
    for c in range(2):
        for i in range(3):
            (data / "train" / f"ctrain{c}" / f"{i}.png").unlink()
    given = ("train", f"--data=folder:{data}", *SMALL, "--steps=2", "--out", tmp_path / "run")
    assert "2 classes have fewer: 'ctrain0', 'ctrain1'; they can be left" in _main(*given).errors
    done = _main(*given, "--drop-small-classes")
    assert done.status == 0, done.errors
    assert "folder: 4 training classes (16 images)" in done.output


def test_a_full_disk_stops_a_run_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def fill(number: int) -> None:
        written.append(number)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill)
    out = tmp_path / "run"
    done = _main("train", *PLAIN, "--steps=9", "--checkpoint-every=1", "--out", out)
    assert done.status == 1
    assert "dmlap train: stopped: " in done.errors and "No space left" in done.errors
    assert done.errors.endswith(f"with: dmlap train --resume {out}\n")
    monkeypatch.undo()
    assert load_checkpoint(out)[1]["step"] == 2
    assert _main("train", "--resume", out).status == 0


def test_memory_that_is_used_up_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmlap_kernels.encoders import ConvEncoder

    forward = ConvEncoder.forward

    def hungry(self: ConvEncoder, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise MemoryError
        return forward(self, images)

    monkeypatch.setattr(ConvEncoder, "forward", hungry)
    done = _main("train", *PLAIN, "--steps=9", "--out", tmp_path / "run")
    assert done.status == 1
    last = done.errors.splitlines()[-1]
    assert last.startswith(
        "dmlap train: stopped: out of memory on cpu after step 0, with batches of"
    )
    assert "--chunk-size" in last


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    data = _photos(tmp_path / "data", prefix=os.fsdecode(b"\xff"))
    out = tmp_path / os.fsdecode(b"run\xfe")
    done = _run("train", f"--data=folder:{data}", *SMALL, "--steps=2", "--out", out)
    assert "are in" in done.stdout and "run\\udcfe" in done.stdout
    assert json.loads((out / "metrics.json").read_text())["config"]["steps"] == 2
    assert "recall@1" in _main("eval", out).output
    assert _main("report", out).status == 0


def test_output_that_nobody_reads_is_no_error() -> None:
    process = _started("info")
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and errors == ""


def test_progress_without_a_stream_for_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python has none where the caller has closed it, as `dmlap train 2>&-` does."""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(2) as progress:
        progress.on_step(1, 0.5, 1.0)
        progress.on_evaluation({"step": 1, "recall@1": 0.5})
    assert capsys.readouterr().out == ""


def test_a_diverging_run_stops(tmp_path: Path) -> None:
    done = _main("train", *QUICK, *STEPS, "--learning-rate=1e30", "--out", tmp_path / "run")
    assert done.status == 1
    assert "dmlap train: stopped: the loss is nan at step" in done.errors
    assert "(class '" in done.errors


def test_the_default_folder_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = _main(
        "train", *PLAIN, "--steps=2", "--seed=3", "--method=plain", "--loss-option=neg_margin=0.8"
    )
    assert done.status == 0, done.errors
    metrics = json.loads((tmp_path / "runs" / "digits-plain-seed3" / "metrics.json").read_text())
    assert metrics["config"]["loss_options"] == {"neg_margin": 0.8}
    assert metrics["config"]["seed"] == 3
    # All there are, for want of 24.
    assert metrics["config"]["classes_per_batch"] == 5
    # What only alternating projections look at is not in the configuration of a plain run.
    assert "projection_steps" not in metrics["config"]


def test_info() -> None:
    assert "backends" in _main("info").output
    facts = json.loads(_main("info", "--json").output)
    assert {"torch", "cpu"} <= set(facts["backends"])


def test_help_names_defaults() -> None:
    text = _main("train", "--help").output
    assert "--projection-steps L" in text and "(default: contrastive)" in text


def test_the_command_starts_without_extras(tmp_path: Path) -> None:
    """``dmlap info`` on an installation without any extra."""
    blocked = "matplotlib PIL sklearn safetensors tqdm tensorboard scipy".split()
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from dmlap_kernels.cli import main\n"
        "assert main(['info']) == 0\n"
        "sys.exit(main(['train', '--data=digits']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "scikit-learn, which is not installed" in done.stderr
    assert "pip install 'dmlap-kernels[train]'" in done.stderr
    assert not list(tmp_path.iterdir())


class _Done:
    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status, self.output, self.errors = status, output, errors


def _main(*arguments: object) -> _Done:
    """The command in this process."""
    given = [str(a) for a in arguments]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(given)
        except SystemExit as exit:
            status = int(exit.code or 0)
    return _Done(status, output.getvalue(), errors.getvalue())
