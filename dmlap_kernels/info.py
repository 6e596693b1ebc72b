"""The state of an installation: what was built, what runs here, and why the rest does not.

``dmlap info`` prints `render`, ``dmlap info --json`` prints `collect`. Both work without the
extension and without a GPU. `explain` says why ``auto`` takes the backend that it takes.
"""

from __future__ import annotations

import json
import platform
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels import checks, versions
from dmlap_kernels.backends import cache, orders, registry, selfcheck
from dmlap_kernels.backends.chips import chip_at
from dmlap_kernels.backends.cpu import native
from dmlap_kernels.backends.cuda import machine
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairSpec


def collect() -> dict[str, Any]:
    """Everything `render` shows, of types that JSON knows.

    Returns:
        ``version``, ``python``, ``torch``, ``platform``; ``versions``: by name of
        `versions.SUPPORTED`, found, oldest, tested and fit; ``built``: compiler,
        instruction_sets, cuda_archs (None without CUDA), cuda_why and nvcc, or None without the
        extension; ``extension``: None, or why there is none; ``simd``: level in use and levels
        that run here, or None;
        ``threads``; ``cuda``: what the CUDA runtime sees, or None in a build without it;
        ``backends``: by name, usable and the reason if it is not; ``cache``: its folder, and by
        device what is remembered of the chip: checks (of a backend for a kind of call) and
        calibrated (the day, the ops and the file), or None.
    """
    extension = native()
    built = simd = cuda = None
    if not isinstance(extension, str):
        built = json.loads(extension.build_info())
        simd = {"level": extension.simd_level(), "available": extension.simd_levels()}
        cuda = machine() if built["cuda_archs"] else None
    return {
        "version": dmlap_kernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in versions.SUPPORTED},
        "built": built,
        "extension": extension if isinstance(extension, str) else None,
        "simd": simd,
        "threads": torch.get_num_threads(),
        "cuda": None if cuda is None else _plain(cuda),
        "backends": {name: _state(one) for name, one in registry.backends().items()},
        "cache": {
            "folder": None if cache.root() is None else str(cache.root()),
            "devices": {str(device): _remembered(device) for device in _devices()},
        },
    }


def render(info: dict[str, Any]) -> str:
    """`collect`'s answer as a page of text."""
    lines = [
        f"dmlap_kernels {info['version']}",
        f"Python {info['python']}, PyTorch {info['torch']}, {info['platform']}",
        "",
        "versions",
        *_version_lines(info),
        "",
        "built",
        *_built_lines(info),
        "",
        "here",
        *_here_lines(info),
        "",
        "backends",
    ]
    width = max(map(len, info["backends"]))
    for name, state in info["backends"].items():
        words = "usable" if state["usable"] else f"not usable: {state['reason']}"
        lines.append(f"  {name:<{width}}  {words}")
    return "\n".join([*lines, "", "proved and measured", *_cache_lines(info["cache"])])


def headline() -> list[str]:
    """What a test or a measurement is of: the package's file, the versions, what runs here.

    Returns:
        Two lines, for the header of a report.
    """
    facts = collect()
    backends = facts["backends"]
    usable = [name for name, state in backends.items() if state["usable"]]
    simd = f" ({facts['simd']['level']})" if facts["simd"] else ""
    rest = "" if facts["extension"] is None else f"; no extension: {facts['extension']}"
    return [
        f"dmlap_kernels {facts['version']} from {dmlap_kernels.__file__}",
        f"PyTorch {torch.__version__}, Triton {versions.found('triton') or 'none'}, "
        f"NumPy {versions.found('numpy')}; backends that run: {', '.join(usable)}{simd}{rest}",
    ]


def explain(
    op: str, embeddings: Tensor, ref_embeddings: Tensor | None = None, *, match: bool = False
) -> str:
    """Which backend ``backend="auto"`` takes for a call, and why each earlier one is passed over.

    Args:
        op: the loss by its name in ``csrc/include/dmlap/losses.h``, such as ``"nt_xent"`` or
            ``"triplet_hard"``; ``"search"`` for `nearest` and `hard_classes`.
        embeddings: (B, D), of which only device, dtype and shape count.
        ref_embeddings: (N, D) references or proxies, or None.
        match: True for a call with a ``match``, which not every backend serves.

    Returns:
        A line with what is taken and where the order is from, then a line for each backend of it.

    Raises:
        ValueError, TypeError: naming the argument at fault.
    """
    checks.choice("op", op, (*FAMILIES, orders.SEARCH))
    checks.embeddings("embeddings", embeddings)
    if ref_embeddings is not None:
        checks.embeddings("ref_embeddings", ref_embeddings)
        checks.same_kind("ref_embeddings", ref_embeddings, embeddings, "embeddings")
    if match and op == orders.SEARCH:
        raise ValueError("match must be False for 'search', which compares no labels")
    spec = None if op == orders.SEARCH else PairSpec(op, (), match=Match(None) if match else None)
    why = registry.explain(spec, embeddings, ref_embeddings)
    lines = [f"auto takes {why.taken} for {op}{' with a match' * match}; the order is {why.source}"]
    width = max(map(len, why.order))
    for name in why.order:
        words = why.passed_over.get(name, "not needed")
        if name == why.taken:
            words = f"taken; {why.proof}" if why.proof else "taken"
        lines.append(f"  {name:<{width}}  {words}")
    return "\n".join(lines)


def _version(name: str) -> dict[str, Any]:
    supported = versions.SUPPORTED[name]
    limits = {"oldest": supported.oldest, "tested": supported.tested}
    return {"found": versions.found(name), **limits, "fit": versions.fit(name)}


def _version_lines(info: dict[str, Any]) -> list[str]:
    rows = []
    for name, state in info["versions"].items():
        limits = f"{state['oldest']} or newer, tested up to {state['tested']}"
        here = f"{state['found']} {state['fit']}" if state["found"] else state["fit"]
        rows.append((versions.SUPPORTED[name].name, f"{here} ({limits})"))
    return [f"  {name:<16}  {words}" for name, words in rows]


def _built_lines(info: dict[str, Any]) -> list[str]:
    built = info["built"]
    if built is None:
        return ["  no usable extension"]
    archs = built["cuda_archs"]
    cuda = (
        f"for {', '.join(archs)}, with nvcc {built['nvcc']}"
        if archs
        else f"no: {built.get('cuda_why', 'unknown')}"
    )
    return [
        f"  compiler          {built['compiler']}",
        f"  instruction sets  {', '.join(built['instruction_sets'])}",
        f"  CUDA              {cuda}",
    ]


def _here_lines(info: dict[str, Any]) -> list[str]:
    lines = [f"  threads           {info['threads']}"]
    if simd := info["simd"]:
        lines.append(f"  instruction set   {simd['level']} (of {', '.join(simd['available'])})")
    if cuda := info["cuda"]:
        devices = [f"{d['name']} ({d['capability']})" for d in cuda["devices"]]
        lines.append(f"  CUDA devices      {', '.join(devices) or 'none'}")
    return lines


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]


def _remembered(device: torch.device) -> dict[str, Any]:
    chip = chip_at(device)
    if chip is None:
        return {"chip": None, "checks": [], "calibrated": None}
    checks_of = [
        {"backend": subject.backend, "call": subject.words} | verdict._asdict()
        for subject, verdict in selfcheck.remembered(chip)
    ]
    measured, content = orders.calibrated(chip), cache.read(chip, orders.CALIBRATED)
    calibrated = None
    if measured is not None and content is not None:
        file = str(cache.path_of(chip, orders.CALIBRATED))
        calibrated = {"when": content["when"], "ops": sorted(measured), "file": file}
    return {"chip": chip.name, "checks": checks_of, "calibrated": calibrated}


def _cache_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"  kept in {found['folder'] or 'nothing: there is no home directory'}"]
    if selfcheck.switched_off():
        lines.append("  self-checks are switched off: DMLAP_SELFCHECK=0")
    for device, state in found["devices"].items():
        lines.append(f"  {device}: {state['chip'] or 'unknown'}")
        if one := state["calibrated"]:
            lines.append(f"    orders of {len(one['ops'])} ops, calibrated on {one['when']}")
        elif device != "cpu":
            lines.append("    no orders of its own (dmlap calibrate measures them)")
        for check in state["checks"]:
            words = "passed" if check["passed"] else f"failed: {check['why']}"
            lines.append(f"    {check['backend']}, {check['call']}, {check['when']}: {words}")
    return lines


def _state(backend: registry.Backend) -> dict[str, Any]:
    reason = backend.unavailable()
    return {"usable": reason is None, "reason": reason}


def _plain(cuda: dict[str, Any]) -> dict[str, Any]:
    """The machine with capabilities as people write them."""
    devices = [
        {"name": device["name"], "capability": ".".join(map(str, device["capability"]))}
        for device in cuda["devices"]
    ]
    return {**cuda, "devices": devices}
