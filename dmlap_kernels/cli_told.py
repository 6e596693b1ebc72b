"""What ``dmlap train`` tells before its first step and after its last, and how errors are told."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from dmlap_kernels.data import Dataset, LayoutError
from dmlap_kernels.data.unreadable import UnreadableImages
from dmlap_kernels.plurals import counted
from dmlap_kernels.report.page import REPORT_FILE
from dmlap_kernels.trainer.config import TrainConfig

# Characters of an error that are printed.
_LONGEST = 1000
# The lines of these are meant.
_OF_SEVERAL_LINES = (LayoutError, UnreadableImages)


def told_error(error: Exception) -> str:
    """What an error says, on one line of bounded length unless it is made of several."""
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    if isinstance(inner, _OF_SEVERAL_LINES):
        return str(error)
    # Some errors of torch go on with a trace of its C++ code.
    text = " ".join(str(error).partition("\nException raised from")[0].split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def told_data(config: TrainConfig, data: Dataset) -> str:
    """Of what a run learns and is judged by: classes, images, their size, how they were divided."""
    splits = [("training", data.train), ("validation", data.validation), ("test", data.test)]
    parts = [
        f"{counted(split.num_classes, f'{name} class')} ({counted(len(split), 'image')})"
        for name, split in splits
        if split is not None
    ]
    channels, height, width = data.train.images.shape[1:]
    colour = "grey" if channels == 1 else "in colour"
    lines = [
        f"{data.name}: {', '.join(parts)}",
        f"images: {height} x {width} pixels, {colour} (--image-size)",
    ]
    if data.division:
        lines.append(f"classes: {data.division}")
    if config.validation or config.validation_fold is not None:
        option = "--validation" if config.validation else "--validation-fold"
        lines.append(f"validation classes: held out of the training classes ({option})")
    return "\n".join(lines)


def which_classes(test: dict[str, Any]) -> str:
    """The test classes, and whether they were trained on: by the names of classes."""
    seen, classes = test["seen_in_training"], test["classes"]
    told = counted(classes, "class")
    if not seen:
        return f"{told} never seen in training"
    if len(seen) == classes:
        return (
            f"{told}, all of them also in training" if classes > 1 else f"{told}, also trained on"
        )
    names = ", ".join(seen[:3]) + (", ..." if len(seen) > 3 else "")
    return f"{told}, {len(seen)} of them also in training ({names})"


def next_commands(out: Path) -> str:
    """What to do with a finished run, ready to be copied."""
    folder = quoted(out)
    commands = (
        (f"dmlap report {folder}", f"writes {quoted(out / REPORT_FILE)}, to open in a browser"),
        (f"dmlap embed {folder} --out {quoted(out / 'test.npz')}", "embeddings, to search in"),
        (f"dmlap export {folder} --out {quoted(out / 'encoder.pt2')}", "the encoder for others"),
    )
    return "\n".join(["next:", *(f"  {command}   # {what}" for command, what in commands)])


def search_lines(out: Path) -> str:
    """How the nearest images are found in a file that ``dmlap embed`` has written."""
    if out.suffix != ".npz":
        return ""
    return (
        "the five nearest of each, in Python:\n"
        "  import numpy, torch, dmlap_kernels\n"
        f"  found = numpy.load({os.fsdecode(out)!r})\n"
        "  rows = torch.from_numpy(found['embeddings'])\n"
        "  distances, indices = dmlap_kernels.nearest(rows, None, 5)   # rows of found['ids']"
    )


def quoted(path: Path) -> str:
    """``path`` as a shell takes it."""
    return shlex.quote(os.fspath(path))
