"""`import dmlap_kernels` is light, and its submodules are there when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dmlap_kernels

FOLDER = Path(dmlap_kernels.__file__).parent
PUBLIC = sorted(
    path.stem if path.is_file() else path.name
    for path in FOLDER.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists())
    and not path.stem.startswith(("_", "cli"))
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_submodules_need_no_import_of_their_own() -> None:
    assert len(PUBLIC) > 10
    run(
        "import dmlap_kernels\n"
        f"for name in {PUBLIC}:\n"
        "    assert name in dir(dmlap_kernels), name\n"
        "    getattr(dmlap_kernels, name)"
    )


def test_names_as_the_readme_spells_them() -> None:
    run(
        "import dmlap_kernels\n"
        "dmlap_kernels.losses.TripletLoss, dmlap_kernels.info.explain\n"
        "dmlap_kernels.evaluation.retrieval_metrics, dmlap_kernels.trainer.Trainer"
    )


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'losess'"):
        dmlap_kernels.losess  # noqa: B018


def test_import_alone_brings_nothing_of_the_extras() -> None:
    loaded = set(
        run(
            "import sys, numpy, torch; before = set(sys.modules); import dmlap_kernels\n"
            "print(*set(sys.modules) - before)"
        ).split()
    )
    extras = {"triton", "faiss", "sklearn", "matplotlib", "PIL", "tqdm", "safetensors"}
    unwanted = extras | {"dmlap_kernels.trainer", "dmlap_kernels.report"}
    assert "dmlap_kernels" in loaded and not loaded & unwanted
