"""How a build ends that cannot succeed, and what it compiles again."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.build.conftest import copy_of, run

HINT = "hint: DMLAP_NATIVE=0 installs without a compiler (everything then runs on torch)"
HINT_CUDA = "hint: DMLAP_CUDA=0 builds without the CUDA half"
COMMAND = [sys.executable, "setup.py", "build_ext", "--inplace"]

UNIT = """
#include "dmlap/small.h"
int {name}() {{ return kValue; }}
"""
MODULE = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(_native, m) { m.def("build_info", [] { return DMLAP_BUILD_INFO; }); }
"""


@pytest.fixture
def small(sources, tmp_path):
    """The project's build over three sources that compile in a moment."""
    tree = tmp_path / "small"
    for folder in (
        "csrc/cpu/engine",
        "csrc/cuda",
        "csrc/include/dmlap",
        "python_bindings",
        "dmlap_kernels",
    ):
        (tree / folder).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(sources / name, tree)
    (tree / "README.md").write_text("A small package.\n")
    (tree / "csrc/include/dmlap/small.h").write_text("constexpr int kValue = 1;\n")
    for path in ("engine/two", "one"):
        unit = UNIT.format(name=path.rpartition("/")[2])
        (tree / f"csrc/cpu/{path}.cpp").write_text(unit)
    (tree / "python_bindings/module.cpp").write_text(MODULE)
    (tree / "dmlap_kernels/__init__.py").write_text("")
    return tree


def compiled(output):
    return sorted(x.split()[1] for x in output.splitlines() if x.startswith("compiling "))


def test_only_what_changed_is_compiled_again(small, compiler):
    cpu = ["csrc/cpu/engine/two.cpp", "csrc/cpu/one.cpp"]
    everything = [*cpu, "python_bindings/module.cpp"]
    steps = [
        (None, everything),
        (None, []),
        ("csrc/cpu/engine/two.cpp", ["csrc/cpu/engine/two.cpp"]),
        ("csrc/include/dmlap/small.h", cpu),
    ]
    for changed, expected in steps:
        if changed:
            path = small / changed
            path.write_text(path.read_text() + "// changed\n")
        done = run(COMMAND, small, DMLAP_CUDA="0", CXXFLAGS="-O0")
        assert done.returncode == 0, done.stdout
        assert compiled(done.stdout) == expected
        assert ("linking" in done.stdout) == bool(expected)
    done = run(COMMAND, small, DMLAP_CUDA="0", CXXFLAGS="-O0 -DMORE")
    assert compiled(done.stdout) == everything


def ending(done):
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    return done.stdout.splitlines()


def test_a_failed_compile_ends_with_the_message_and_the_hint(small, compiler):
    (small / "csrc/cpu/engine/two.cpp").write_text("int two() { return wrong; }\n")
    lines = ending(run(COMMAND, small, DMLAP_CUDA="0", CXXFLAGS="-O0"))
    assert any("wrong" in line and "two.cpp:1" in line for line in lines)
    assert "failed with exit status 1" in lines[-2]
    assert lines[-1] == HINT


def test_a_compiler_that_does_not_work(small):
    assert ending(run(COMMAND, small, CXX="/bin/false", DMLAP_CUDA="0"))[-1] == HINT


@pytest.mark.parametrize("cxx", [None, "no-such-compiler"])
def test_no_compiler(small, cxx):
    variables = {"PATH": "/nonexistent"} if cxx is None else {"CXX": cxx}
    lines = ending(run(COMMAND, small, DMLAP_CUDA="0", **({"CXX": ""} | variables)))
    assert ("no C++ compiler found" if cxx is None else f"cannot run {cxx}") in lines[-2]
    assert lines[-1] == HINT


def test_pip_shows_the_hint(small):
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    done = run(pip, small, CXX="/bin/false", DMLAP_CUDA="0")
    assert done.returncode != 0
    assert HINT in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("name", ["DMLAP_NATIVE", "DMLAP_CUDA"])
def test_switches_are_0_or_1(small, compiler, name):
    lines = ending(run(COMMAND, small, **{name: "yes"}))
    assert lines[-1] == f"error: {name} must be 0 or 1, not 'yes'"


@pytest.mark.parametrize("asked", [{"DMLAP_CUDA": "1"}, {"DMLAP_CUDA_ARCHS": "90"}])
def test_cuda_without_the_nvcc_that_was_named(small, compiler, asked):
    lines = ending(run(COMMAND, small, CUDACXX="/nonexistent/nvcc", **asked))
    assert lines[-2] == "error: no nvcc was found (looked for /nonexistent/nvcc)"
    assert lines[-1] == HINT_CUDA


DRIVER = """
static const int capabilities[] = {GPUS};
static const int number = sizeof capabilities / sizeof *capabilities;
int cuInit(unsigned flags) { return number ? 0 : 100; }
int cuDeviceGetCount(int* count) { *count = number; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int major = capabilities[device] / 10;
  *value = attribute == 75 ? major : capabilities[device] - 10 * major;
  return 0;
}
"""
NVCC = """#!%s
print(*("compute_" + arch for arch in "75 80 86 89 90 100".split()), sep="\\n")
"""
NO_SMI = "#!/bin/false\n"
# What setup.py says of the CUDA half, without building anything.
PLAN = """
import runpy, setuptools
setuptools.setup = lambda **options: None
plan = runpy.run_path("setup.py")["plan_cuda"]()
print(f"with CUDA for {', '.join(plan.archs)}" if plan.nvcc else "without CUDA", plan.why, sep=": ")
"""
ASKED, ALL = {"DMLAP_CUDA": "1"}, {"DMLAP_CUDA_ARCHS": "all"}
NO_DRIVER = "without CUDA: no NVIDIA driver was found; reinstall with DMLAP_CUDA=1"
# GPUs by their capability (None: no driver), variables of the build, and what it says.
PLANS = [
    (None, {}, NO_DRIVER),
    (None, {"CUDACXX": "nvcc"}, NO_DRIVER),
    ([], {}, "without CUDA: the NVIDIA driver sees no GPU; reinstall with DMLAP_CUDA=1"),
    ([90], {}, "with CUDA for 90: GPUs of capability 9.0 are here"),
    ([90, 75, 80, 90], {}, "with CUDA for 80, 90: GPUs of capability 8.0, 9.0 are here"),
    ([103, 87], {}, "with CUDA for 86, 100: GPUs of capability 8.7, 10.3 are here"),
    ([75], {}, "without CUDA: the GPUs here are of capability 7.5, it serves 8.0 and up"),
    ([90], {"CUDACXX": "/no/nvcc"}, "without CUDA: no nvcc was found (looked for /no/nvcc)"),
    ([90], {"DMLAP_CUDA": "0"}, "without CUDA: DMLAP_CUDA=0 left it out"),
    (None, ASKED, "with CUDA for 80, 90, 100: DMLAP_CUDA asked for it"),
    (None, ALL, "with CUDA for 80, 90, 100: DMLAP_CUDA_ARCHS asked for it"),
    (None, {"DMLAP_CUDA_ARCHS": "8.9"}, "with CUDA for 89: DMLAP_CUDA_ARCHS asked for it"),
    ([86], ASKED, "with CUDA for 86: DMLAP_CUDA asked for it"),
    ([86], ASKED | ALL, "with CUDA for 80, 90, 100: DMLAP_CUDA and DMLAP_CUDA_ARCHS asked for it"),
    ([75], ASKED, "with CUDA for 80, 90, 100: DMLAP_CUDA asked for it"),
]


@pytest.fixture(scope="session")
def machine(once, compiler):
    """GPUs -> variables of a machine with a driver that sees them, and an nvcc."""

    def variables(gpus):
        def make(folder):
            for name, content in (("nvcc", NVCC % sys.executable), ("nvidia-smi", NO_SMI)):
                (folder / name).write_text(content)
                (folder / name).chmod(0o755)
            library = folder / "libcuda.so.1"
            if gpus is None:  # no library, but found before that of this machine, if it has one
                library.write_text("")
                return
            (folder / "driver.c").write_text(DRIVER.replace("GPUS", ", ".join(map(str, gpus))))
            done = run(["cc", "-shared", "-fPIC", "-o", library, folder / "driver.c"], folder)
            assert done.returncode == 0, done.stdout

        name = "none" if gpus is None else "-".join(map(str, gpus))
        folder = once(f"machine-{name}", make)
        path = f"{folder}:{os.environ['PATH']}"
        return {"PATH": path, "LD_LIBRARY_PATH": str(folder), "CUDACXX": "nvcc"}

    return variables


def said_of_cuda(sources, variables):
    done = run([sys.executable, "-c", PLAN], sources, **variables)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("gpus,asked,said", PLANS)
def test_the_cuda_half_is_built_for_the_gpus_here(sources, machine, gpus, asked, said):
    assert said_of_cuda(sources, machine(gpus) | asked).startswith(said)


def test_gpus_are_found_by_nvidia_smi_where_the_driver_is_not_on_the_path(
    sources, machine, tmp_path
):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '9.0\\n12.0\\n'\n")
    smi.chmod(0o755)
    variables = machine(None)
    variables["PATH"] = f"{tmp_path}:{variables['PATH']}"
    said = said_of_cuda(sources, variables)
    assert said.startswith("with CUDA for 90, 100: GPUs of capability 9.0, 12.0 are here")


def test_a_build_says_once_what_it_builds_and_why(small, machine):
    done = run(COMMAND, small, CXXFLAGS="-O0", **machine([]))
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("building for "))
    assert "), without CUDA: the NVIDIA driver sees no GPU; reinstall with DMLAP_CUDA=1" in line
    ask = "import json; from dmlap_kernels import _native as n; b = json.loads(n.build_info());"
    ask += "print(b['cuda_archs'], b['cuda_why'])"
    told = run([sys.executable, "-c", ask], small).stdout.strip()
    assert told == "None " + line.partition("without CUDA: ")[2]


@pytest.fixture
def nvcc():
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        pytest.skip("no nvcc")
    return found


@pytest.mark.parametrize(
    "archs,word", [("70", "from 80 on"), ("83", "cannot compile"), ("x", "'x'")]
)
def test_unknown_capabilities(small, compiler, nvcc, archs, word):
    lines = ending(run(COMMAND, small, DMLAP_CUDA="1", CUDACXX=nvcc, DMLAP_CUDA_ARCHS=archs))
    assert "DMLAP_CUDA_ARCHS" in lines[-2]
    assert word in lines[-2]
    assert lines[-1] == HINT_CUDA


def test_a_failed_kernel_names_both_ways_out(small, compiler, nvcc):
    (small / "csrc/cuda/bad.cu").write_text("__global__ void k() { wrong(); }\n")
    variables = {"DMLAP_CUDA": "1", "CUDACXX": nvcc, "DMLAP_CUDA_ARCHS": "80", "CXXFLAGS": "-O0"}
    lines = ending(run(COMMAND, small, **variables))
    assert any("wrong" in line for line in lines)
    assert lines[-1] == f"{HINT_CUDA}; {HINT.removeprefix('hint: ')}"


SPILLING = """
__global__ void __launch_bounds__(1024, 2) spills(float* p, int n) {
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = p[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] += a[(i + 7) % 96] * a[(i + 31) % 96];
#pragma unroll
  for (int i = 0; i < 96; ++i) p[i * n + threadIdx.x] = a[i];
}
"""


def test_a_kernel_that_spills_registers_fails_where_warnings_are_errors(small, compiler, nvcc):
    (small / "csrc/cuda/spills.cu").write_text(SPILLING)
    variables = {"DMLAP_CUDA": "1", "CUDACXX": nvcc, "DMLAP_CUDA_ARCHS": "90", "CXXFLAGS": "-O0"}
    lines = ending(run(COMMAND, small, DMLAP_WERROR="1", **variables))
    assert any("spilled" in line for line in lines)
    assert lines[-1] == f"{HINT_CUDA}; {HINT.removeprefix('hint: ')}"


def test_the_cuda_half_imports_without_a_driver(sources, compiler, nvcc, tmp_path):
    tree = copy_of(sources, tmp_path / "cuda")
    for path in (tree / "csrc/cpu").rglob("*.cpp"):
        path.unlink()
    (tree / "python_bindings/module.cpp").write_text(
        '#include "cuda_bindings.h"\nPYBIND11_MODULE(_native, m) { register_cuda(m); }\n'
    )
    variables = {"DMLAP_CUDA": "1", "CUDACXX": nvcc, "DMLAP_CUDA_ARCHS": "8.0", "CXXFLAGS": "-O0"}
    done = run(COMMAND, tree, **variables)
    assert done.returncode == 0, done.stdout
    # The file itself, not the package: importing that would need the rest of the extension.
    (module,) = (tree / "dmlap_kernels").glob("_native*.so")
    shutil.copy(module, tmp_path)
    ask = (
        "import _native as n\n"
        "sides = [0] * 8, [10, 100, 16], False, 'dot', 'high', [0] * 2\n"
        "print(n.cuda_machine(), n.cuda_gradient_splits(sides))\n"
        "try:\n"
        "    n.cuda_extremes(sides, [0] * 6, 0, (10_000, 0))\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = run([sys.executable, "-c", ask], tmp_path)
    assert done.returncode == 0, done.stdout
    assert "'driver_version'" in done.stdout
    assert done.stdout.splitlines()[0].endswith(" 2")
    assert "CUDA could not launch extremes on device 10000: " in done.stdout
