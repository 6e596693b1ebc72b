"""Builds the native extension `dmlap_kernels._native`; everything else is in pyproject.toml.

The sources know no torch, so the build needs a C++17 compiler with OpenMP and pybind11 only.
Each translation unit is compiled on its own, with flags chosen by its name, and only when it, a
header it includes or its command changed. Environment variables:

    DMLAP_NATIVE=0        no extension at all, no compiler needed (everything runs on torch)
    DMLAP_CUDA=0|1        without / with the CUDA half, or an error (default: with, where there are
                          a GPU that it serves and nvcc)
    DMLAP_CUDA_ARCHS      capabilities to build it for, e.g. "80;90", or "all": those of 80, 90, 100
                          that nvcc knows (default: of the GPUs here; where there are none, "all");
                          naming some asks for the CUDA half as DMLAP_CUDA=1 does
    DMLAP_WERROR=1        warnings are errors
    CXX, CXXFLAGS, LDFLAGS, CUDACXX, CUDA_HOME   as everywhere
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = ("80", "90", "100")
OLDEST_ARCH = 80
HINT_NATIVE = "DMLAP_NATIVE=0 installs without a compiler (everything then runs on torch)"
HINT_CUDA = "DMLAP_CUDA=0 builds without the CUDA half"
HOW_CUDA = "reinstall with DMLAP_CUDA=1 to have it for 8.0, 9.0 and 10.0"

COMMON_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-DNDEBUG",
    "-Wall",
    "-Wextra",
]
# A file named *_avx2.cpp is compiled for that instruction set, and only on x86-64.
INSTRUCTION_SETS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
}


def fail(message: str, *hints: str) -> SystemExit:
    """An exit whose last line is the hint; SystemExit, because pip prints it without traceback."""
    return SystemExit(f"error: {message}\nhint: {'; '.join(hints)}")


def switch(name: str, default: bool | None) -> bool | None:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"error: {name} must be 0 or 1, not {value!r}")
    return value == "1" if value else default


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def native_sources() -> list[str]:
    found = [*ROOT.glob("csrc/cpu/**/*.cpp"), *ROOT.glob("python_bindings/*.cpp")]
    return sorted(relative(path) for path in found)


def instruction_set(source: str) -> str | None:
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in INSTRUCTION_SETS else None


def run(command: list[str], *hints: str) -> str:
    """Run a compiler and return its output; its message and the hint end a failure."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, text=True, errors="replace", stdout=subprocess.PIPE, stderr=-2
        )
    except OSError as error:
        raise fail(f"cannot run {command[0]}: {error.strerror}", *hints) from None
    if done.returncode:
        sys.stderr.write(f"{shlex.join(command)}\n{done.stdout}")
        sys.stderr.flush()
        name = Path(command[0]).name
        raise fail(f"{name} failed with exit status {done.returncode} (see above)", *hints)
    return done.stdout


def find_cxx() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise fail("no C++ compiler found (looked for $CXX, c++, g++, clang++)", HINT_NATIVE)


class Cuda(NamedTuple):
    """What is built of the CUDA half: nvcc and the capabilities, or None and none; and why."""

    nvcc: str | None
    archs: list[str]
    why: str


def plan_cuda() -> Cuda:
    """For what was asked for, or for the GPUs that are here: nvcc would keep all others waiting."""
    wanted = switch("DMLAP_CUDA", None)
    asked = os.environ.get("DMLAP_CUDA_ARCHS", "")
    if wanted is False:
        return Cuda(None, [], "DMLAP_CUDA=0 left it out")
    if wanted or asked:
        nvcc, places = find_nvcc()
        if nvcc is None:
            raise fail(f"no nvcc was found (looked for {', '.join(places)})", HINT_CUDA)
        by = " and ".join(n for n, v in (("DMLAP_CUDA", wanted), ("DMLAP_CUDA_ARCHS", asked)) if v)
        return Cuda(nvcc, cuda_archs(nvcc, asked), f"{by} asked for it")
    present, nothing = gpus()
    served = [capability for capability in present if capability >= OLDEST_ARCH]
    if not served:
        what = nothing or f"the GPUs here are of capability {shown(present)}, it serves 8.0 and up"
        return Cuda(None, [], f"{what}; {HOW_CUDA}")
    nvcc, places = find_nvcc()
    if nvcc is None:
        why = f"no nvcc was found (looked for {', '.join(places)})"
        return Cuda(None, [], f"{why}, which builds it for the GPUs here ({shown(served)})")
    return Cuda(nvcc, archs_for(served, nvcc), f"GPUs of capability {shown(served)} are here")


def shown(capabilities: list[int]) -> str:
    return ", ".join(f"{number // 10}.{number % 10}" for number in sorted(set(capabilities)))


def find_nvcc() -> tuple[str | None, list[str]]:
    """The nvcc to use, or None; and where it was looked for."""
    named = os.environ.get("CUDACXX")
    home = os.environ.get("CUDA_HOME")
    usual = [f"{home}/bin/nvcc"] if home else []
    # A compiler that was named is the one to use, or there is none.
    places = [named] if named else [*usual, "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None), places


def gpus() -> tuple[list[int], str]:
    """Capabilities of the NVIDIA GPUs here, 90 for 9.0; where there are none, also why."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return gpus_by_smi()
    status = driver.cuInit(0)
    if status not in (0, 100):  # CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE
        return [], f"the NVIDIA driver does not start (cuInit returned {status})"
    number, found = ctypes.c_int(), []
    if status == 0:
        driver.cuDeviceGetCount(ctypes.byref(number))
    for device in range(number.value):
        parts = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            value = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            parts.append(value.value)
        found.append(10 * parts[0] + parts[1])
    return found, "" if found else "the NVIDIA driver sees no GPU"


def gpus_by_smi() -> tuple[list[int], str]:
    """The same by nvidia-smi, where the driver's library is not where the loader looks."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, text=True, capture_output=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    found = [int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", text, re.M)]
    return found, "" if found else "no NVIDIA driver was found"


def listed_archs(nvcc: str) -> list[str]:
    return re.findall(r"compute_(\d+[af]?)", run([nvcc, "--list-gpu-arch"], HINT_CUDA))


def sorted_archs(archs: set[str]) -> list[str]:
    return sorted(archs, key=lambda arch: (int(arch.rstrip("af")), arch))


def archs_for(capabilities: list[int], nvcc: str) -> list[str]:
    """What to compile for, for these GPUs to run it: of one that nvcc does not know yet, the newest
    before it, of which the driver compiles the PTX."""
    known = [int(arch) for arch in listed_archs(nvcc) if arch.isdigit()]
    known = [arch for arch in known if arch >= OLDEST_ARCH]
    chosen = {max((arch for arch in known if arch <= c), default=None) for c in capabilities}
    if None in chosen:
        raise fail(f"{nvcc} cannot compile for capability {shown(capabilities)}", HINT_CUDA)
    return sorted_archs({str(arch) for arch in chosen})


def cuda_archs(nvcc: str, asked: str) -> list[str]:
    """The capabilities asked for, without the dot, ascending."""
    listed = listed_archs(nvcc)
    if not asked:
        served = [capability for capability in gpus()[0] if capability >= OLDEST_ARCH]
        if served:
            return archs_for(served, nvcc)
    if asked in ("", "all"):
        known = [arch for arch in DEFAULT_CUDA_ARCHS if arch in listed]
        if not known:
            raise fail(f"{nvcc} knows none of {', '.join(DEFAULT_CUDA_ARCHS)}", HINT_CUDA)
        return known
    archs = [arch for arch in re.split(r"[;,\s]+", asked.replace(".", "")) if arch]
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?", arch) or int(arch.rstrip("af")) < OLDEST_ARCH:
            raise fail(
                f"DMLAP_CUDA_ARCHS holds {arch!r}; it takes capabilities from 80 on, such as "
                '"80;90", or "all"',
                HINT_CUDA,
            )
        if arch.rstrip("af") not in listed:
            raise fail(f"{nvcc} cannot compile for capability {arch} (DMLAP_CUDA_ARCHS)", HINT_CUDA)
    return sorted_archs(set(archs))


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "unknown"


def nvcc_version(nvcc: str) -> str:
    match = re.search(r"release [\d.]+, V([\d.]+)", run([nvcc, "--version"], HINT_CUDA))
    return match.group(1) if match else "unknown"


def newest_change(dependencies: Path) -> float:
    """Latest change among the files a compiler's dependency file names; inf if one is gone."""
    text = dependencies.read_text().replace("\\\n", " ").partition(": ")[2]
    names = [name.replace("\\ ", " ") for name in re.split(r"(?<!\\)\s+", text.strip())]
    try:
        return max((ROOT / name).stat().st_mtime for name in names)
    except OSError:
        return float("inf")


class Unit:
    """One translation unit: its command, and whether its object is up to date."""

    def __init__(self, source: str, build_dir: Path, command: list[str], *hints: str) -> None:
        self.source = source
        self.object = build_dir / f"{source}.o"
        self.dependencies = build_dir / f"{source}.d"
        self.record = build_dir / f"{source}.cmd"
        self.hints = hints
        self.command = [
            *command,
            *("-MMD", "-MF", str(self.dependencies)),
            *("-c", source, "-o", str(self.object)),
        ]

    def is_fresh(self) -> bool:
        files = (self.object, self.dependencies, self.record)
        if not all(path.exists() for path in files):
            return False
        if self.record.read_text() != shlex.join(self.command):
            return False
        return newest_change(self.dependencies) <= self.object.stat().st_mtime

    def compile(self) -> None:
        self.object.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        sys.stdout.write(f"compiling {self.source}\n")  # one write, as several threads come here
        sys.stdout.flush()
        warnings = run(self.command, *self.hints)
        if warnings:
            sys.stderr.write(warnings)
        self.record.write_text(shlex.join(self.command))


class BuildNative(build_ext):
    """Compiles and links `dmlap_kernels._native` as the docstring of this file says."""

    def build_extension(self, ext: Extension) -> None:
        if not ext.sources:
            raise fail("no sources under csrc/cpu and python_bindings", HINT_NATIVE)
        cxx = find_cxx()
        cuda = plan_cuda()
        nvcc = cuda.nvcc
        build_dir = Path(self.build_temp).absolute() / "native"
        x86 = platform.machine() in ("x86_64", "AMD64")
        sources = [s for s in ext.sources if x86 or not instruction_set(s)]
        info = self.build_info(cxx, cuda, sources)
        sets = ", ".join(info["instruction_sets"])
        half = f"with CUDA for {', '.join(cuda.archs)}" if nvcc else "without CUDA"
        print(f"building for {platform.machine()} ({sets}), {half}: {cuda.why}", flush=True)
        units = [self.cpp_unit(source, build_dir, cxx, nvcc, info) for source in sources]
        if nvcc:
            cuda_sources = sorted(relative(path) for path in ROOT.glob("csrc/cuda/*.cu"))
            units += [self.cuda_unit(s, build_dir, cxx, nvcc, info) for s in cuda_sources]
        self.compile_stale(units)
        self.link(Path(self.get_ext_fullpath(ext.name)).absolute(), units, build_dir, cxx, nvcc)

    @staticmethod
    def build_info(cxx: list[str], cuda: Cuda, sources: list[str]) -> dict[str, Any]:
        sets = {name for source in sources if (name := instruction_set(source))}
        return {
            "compiler": first_line(run([*cxx, "--version"], HINT_NATIVE)),
            "instruction_sets": ["baseline", *(name for name in INSTRUCTION_SETS if name in sets)],
            "cuda_archs": cuda.archs if cuda.nvcc else None,
            "cuda_why": cuda.why,
            "nvcc": nvcc_version(cuda.nvcc) if cuda.nvcc else None,
        }

    @staticmethod
    def cpp_unit(
        source: str, build_dir: Path, cxx: list[str], nvcc: str | None, info: dict[str, Any]
    ) -> Unit:
        command = [*cxx, *COMMON_FLAGS]
        if name := instruction_set(source):
            command += INSTRUCTION_SETS[name]
        command += ["-I", "csrc/include", "-I", "csrc/cpu"]
        if source.startswith("python_bindings/"):
            # Nothing but the bindings knows of the CUDA half: the rest is compiled once for both.
            command.append(f"-DDMLAP_WITH_CUDA={int(nvcc is not None)}")
            import pybind11  # only here: an install without the extension does without it

            # -isystem: warnings inside these headers are not ours.
            for path in (pybind11.get_include(), sysconfig.get_path("include")):
                command += ["-isystem", path]
            command.append(f"-DDMLAP_BUILD_INFO={json.dumps(json.dumps(info))}")
        if switch("DMLAP_WERROR", False):
            command.append("-Werror")
        command += shlex.split(os.environ.get("CXXFLAGS", ""))
        return Unit(source, build_dir, command, HINT_NATIVE)

    @staticmethod
    def cuda_unit(
        source: str, build_dir: Path, cxx: list[str], nvcc: str, info: dict[str, Any]
    ) -> Unit:
        archs = info["cuda_archs"]
        command = [nvcc, "-O3", "-std=c++17", "-DNDEBUG", "-DDMLAP_WITH_CUDA=1"]
        command += ["-ccbin", cxx[-1], "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
        for arch in archs:
            command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        # PTX of the last one, so that later GPUs can compile it when the module is loaded.
        command += ["-gencode", f"arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
        command += ["-I", "csrc/include"]
        if switch("DMLAP_WERROR", False):
            # A kernel that keeps registers in memory is one that was not looked at.
            command += ["-Xptxas", "--warn-on-spills", "-Werror", "all-warnings"]
        return Unit(source, build_dir, command, HINT_CUDA, HINT_NATIVE)

    def compile_stale(self, units: list[Unit]) -> None:
        stale = [unit for unit in units if self.force or not unit.is_fresh()]
        jobs = self.parallel if isinstance(self.parallel, int) else None
        affinity = getattr(os, "sched_getaffinity", None)
        jobs = jobs or (len(affinity(0)) if affinity else os.cpu_count())
        with ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(unit.compile) for unit in stale]
            try:
                for one in running:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def link(
        self, target: Path, units: list[Unit], build_dir: Path, cxx: list[str], nvcc: str | None
    ) -> None:
        objects = [str(unit.object) for unit in units]
        ldflags = shlex.split(os.environ.get("LDFLAGS", ""))
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        hidden = [] if sys.platform == "darwin" else ["-Wl,--exclude-libs,ALL"]
        if nvcc:
            # nvcc knows where its static runtime lies; with it inside, the module needs no CUDA
            # library to be imported.
            command = [nvcc, "-shared", "-cudart", "static", "-ccbin", cxx[-1]]
            for flag in ("-fopenmp", *hidden, *ldflags):
                command += ["-Xcompiler", flag.replace(",", "\\,")]
            command += ["-o", str(target), *objects, "-ldl", "-lrt", "-lpthread"]
        else:
            command = [*cxx, "-shared", "-fopenmp", *undefined, *hidden]
            command += ["-o", str(target), *objects, *ldflags]
        record = build_dir / "link.cmd"
        if (
            not self.force
            and target.exists()
            and record.exists()
            and record.read_text() == shlex.join(command)
            and all(Path(o).stat().st_mtime <= target.stat().st_mtime for o in objects)
        ):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # never write into a file that a process has mapped
        record.parent.mkdir(parents=True, exist_ok=True)
        print(f"linking {target.name}", flush=True)
        run(command, *((HINT_CUDA, HINT_NATIVE) if nvcc else (HINT_NATIVE,)))
        record.write_text(shlex.join(command))


class BuildPython(build_py):
    """build_py that starts clean: a file deleted since the last build stays out of the wheel."""

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(Path(self.build_lib) / "dmlap_kernels", ignore_errors=True)
        super().run()


def extensions() -> list[Extension]:
    if not switch("DMLAP_NATIVE", True):
        return []
    return [Extension("dmlap_kernels._native", sources=native_sources())]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "build_py": BuildPython})
