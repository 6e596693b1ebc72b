"""Another revision of the package takes part in comparisons from a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dmlap_kernels
from benchmarks import measure, revision
from benchmarks.batch import Absent
from benchmarks.comparisons import Comparisons, check

COMMIT = "0123456789abcdef"


@pytest.fixture
def other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: str
) -> Iterator[revision.Revision]:
    """The package that is tested, as if it were another revision."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "dmlap_kernels").symlink_to(Path(dmlap_kernels.__file__).parent)
    monkeypatch.setattr(revision, "commit_of", lambda _: COMMIT)
    monkeypatch.setattr(revision, "build", lambda _: tmp_path)
    found = revision.Revision("main")
    yield found
    found.close()


def test_its_steps_do_the_same_and_take_their_own_time(
    other: revision.Revision, tmp_path: Path
) -> None:
    assert Path(other.package).is_relative_to(tmp_path)
    comparisons = Comparisons(0.02, False, False, other)
    steps = comparisons._steps("contrastive-2%", 64, 8)
    assert list(steps) == ["ours", "revision", "eager", "G"]
    assert "left out beside a revision" in comparisons.absent("contrastive-2%", 64, 8)["library"]
    for mine, theirs in zip(steps["ours"](), steps["revision"](), strict=True):
        assert torch.equal(mine, theirs)
    check("contrastive-2%", steps)
    times = comparisons.measure("contrastive-2%", 64, 8)
    assert all(seconds > 0 for seconds in times["revision"])


def test_a_remote_step_is_timed_where_it_runs() -> None:
    asked = []

    def ask(*question: object) -> float:
        asked.append(question)
        return 0.125

    step = revision.RemoteStep(ask, ("triplet-hard", 64, 8))
    assert measure.call_time(step, 3) == 0.125
    assert asked == [("time", ("triplet-hard", 64, 8), 3)]


def test_what_it_does_not_have_is_absent(other: revision.Revision) -> None:
    with pytest.raises(Absent, match=f"at {COMMIT[:9]}: KeyError: 'quadruplet'"):
        other.make("quadruplet", 64, 8)
    assert other.make("triplet-hard", 64, 8)()[0].ndim == 0  # it goes on


def test_a_dead_process_is_said_to_be_dead(other: revision.Revision) -> None:
    other._process.kill()
    other._process.wait()
    with pytest.raises(revision.Refused, match="the process of commit 0123.* has died"):
        other.make("triplet-hard", 64, 8)


def test_unknown_commits_are_refused() -> None:
    with pytest.raises(revision.Refused, match="'--no such' names no commit of"):
        revision.commit_of("--no such")


def test_without_one_the_candidate_is_absent() -> None:
    comparisons = Comparisons(0.02, False, False)
    steps = comparisons._steps("contrastive-2%", 64, 8, ("revision", "G"))
    assert list(steps) == ["G"]
    assert "--compare-to" in comparisons.absent("contrastive-2%", 64, 8)["revision"]
