"""`emulated`: the batch-hard CUDA kernels, compiled for the CPU with `emulation.h`."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """(x, labels, y, ref_labels) -> (positive_d2, negative_d2, positive, negative), NumPy."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulated kernel with")
    library = tmp_path_factory.mktemp("emulation") / "hardest_pairs.so"
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    command += ["-I", str(ROOT / "csrc/include"), "-I", str(ROOT / "csrc/cuda")]
    command += [str(HERE / "emulate_hardest_pairs.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    kernel = ctypes.CDLL(str(library)).emulate_hardest_pairs

    def run(x, labels, y=None, ref_labels=None, *, self_case=None, splits=0, descending=False):
        refs, their_labels = (x, labels) if y is None else (y, ref_labels)
        n = len(x)
        out = [np.full(n, np.nan, np.float32) for _ in range(2)]
        out += [np.full(n, -77, np.int64) for _ in range(2)]
        arrays = (x, refs, labels, their_labels)
        status = kernel(
            *(ctypes.c_void_p(a.ctypes.data) for a in arrays),
            *(ctypes.c_int64(v) for v in (n, len(refs), x.shape[1])),
            ctypes.c_int(y is None if self_case is None else self_case),
            ctypes.c_int64(splits),
            ctypes.c_int(descending),
            *(ctypes.c_void_p(a.ctypes.data) for a in out),
        )
        assert status == 0, "threads diverged at a barrier"
        return out

    return run
