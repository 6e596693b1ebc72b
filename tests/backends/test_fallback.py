"""Nothing falls back silently: what is said where ``auto`` takes plain PyTorch, and how often."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import dmlap_kernels
from dmlap_kernels import fused_nt_xent_loss, info, nearest
from dmlap_kernels.backends import cpu, extension, fallback, registry

LABELS = torch.arange(6) // 2
MISSING = {"cpu": "no extension", "triton": "no Triton", "cuda": "no driver", "torch": None}


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(registry, "_chosen", {})
    monkeypatch.setattr(fallback, "_told", set())


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, backend in registry.backends().items():
        monkeypatch.setattr(backend, "unavailable", lambda name=name: MISSING[name])


@pytest.fixture
def said() -> Iterator[Callable[[], list[str]]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [
            str(one.message) for one in caught if one.category is dmlap_kernels.FallbackWarning
        ]


@pytest.mark.parametrize(
    ("device", "order", "taken", "runs", "names"),
    [
        ("cpu", ("cpu", "torch"), "cpu", ("cpu", "torch"), []),
        ("cpu", ("cpu", "torch"), "torch", ("torch",), ["cpu"]),
        # Measured to be fastest without kernels, which would not run for other sizes.
        ("cpu", ("torch",), "torch", ("torch",), ["cpu"]),
        ("cpu", ("torch", "cpu"), "torch", ("cpu", "torch"), []),
        ("cuda", ("torch",), "torch", ("torch", "triton"), []),
        ("cuda", ("torch",), "torch", ("torch",), ["triton", "cuda"]),
        ("cuda", ("cuda", "triton", "torch"), "triton", ("torch", "triton"), ["cuda"]),
        ("cuda", ("cuda", "triton", "torch"), "torch", ("torch",), ["cuda", "triton"]),
        ("mps", ("torch",), "torch", ("torch",), []),
    ],
)
def test_what_is_worth_a_word(
    device: str, order: tuple[str, ...], taken: str, runs: tuple[str, ...], names: list[str]
) -> None:
    reasons = {name: None if name in runs else "why" for name in MISSING}
    assert fallback.passed_over(device, order, taken, reasons) == names


def test_it_is_said_once_with_the_reason_where_the_call_was_made(missing: None) -> None:
    x = torch.randn(6, 3, requires_grad=True)
    with pytest.warns(dmlap_kernels.FallbackWarning) as caught:
        fused_nt_xent_loss(x, LABELS)
        fused_nt_xent_loss(x.double(), LABELS)
        nearest(x.detach(), k=1)
    (one,) = caught
    assert str(one.message) == (
        "tensors on cpu are served by the backend 'torch', slower than the kernels made for them, "
        "which do not run here: 'cpu': no extension"
    )
    assert one.filename == __file__


def test_a_search_says_it_too(missing: None) -> None:
    with pytest.warns(dmlap_kernels.FallbackWarning, match="no extension"):
        nearest(torch.randn(6, 3), k=1)


def test_nothing_is_said_where_nothing_falls_back(said: Callable[[], list[str]]) -> None:
    if registry.backends()["cpu"].unavailable():
        pytest.skip("needs the extension")
    fused_nt_xent_loss(torch.randn(6, 3), LABELS)
    assert not said()


def test_what_was_asked_for_is_no_fallback(missing: None, said: Callable[[], list[str]]) -> None:
    fused_nt_xent_loss(torch.randn(6, 3), LABELS, backend="torch")
    info.explain("nt_xent", torch.randn(6, 3))  # says it by itself
    assert not said()


def test_a_call_on_the_cpu_leaves_compilers_for_gpus_alone(tmp_path: Path) -> None:
    code = "import sys, torch, dmlap_kernels as d; d.nearest(torch.randn(4, 2), k=1); "
    code += "sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_as_an_error_it_stops_every_call(missing: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", dmlap_kernels.FallbackWarning)
        for _ in range(2):
            with pytest.raises(dmlap_kernels.FallbackWarning, match="no extension"):
                fused_nt_xent_loss(torch.randn(6, 3), LABELS)


def test_compiled_calls_say_it_and_stay_one_graph(
    missing: None, said: Callable[[], list[str]]
) -> None:
    torch._dynamo.reset()
    x = torch.randn(6, 3, requires_grad=True)
    compiled = torch.compile(fused_nt_xent_loss, fullgraph=True, backend="aot_eager")
    compiled(x, LABELS).backward()
    assert len(said()) == 1


def checkout(folder: Path) -> Path:
    """The package in a checkout that was never built."""
    package = folder / "checkout" / "dmlap_kernels"
    shutil.copytree(
        extension.PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (package.parent / "csrc").mkdir()
    (package.parent / "setup.py").write_text("")
    return package


def installed(folder: Path, module: str) -> Path:
    package = folder / "site" / "dmlap_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / f"_native{module}").write_text("")
    return package


def test_reasons_for_a_missing_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # what this Python has
    sources = checkout(tmp_path)
    why = extension.why_missing(sources)
    assert why.startswith(f"the extension was not built: {sources} is a folder of sources; ")
    assert why.endswith("python setup.py build_ext --inplace")
    site = installed(tmp_path, ".py")
    importlib.invalidate_caches()
    why = extension.why_missing(sources)
    assert f"Python took the sources in {sources}, which hold no extension" in why
    assert f"installed in {site}; start Python in another folder" in why
    (sources / "_native.cpython-39-x86_64-linux-gnu.so").write_text("")
    why = extension.why_missing(sources)
    assert "built for another Python (_native.cpython-39-x86_64-linux-gnu.so)" in why
    (site / "_native.py").unlink()
    why = extension.why_missing(site)
    assert f"{site} was installed with DMLAP_NATIVE=0; reinstall without it" in why


def test_the_extension_of_another_copy_is_none_of_ours(tmp_path: Path) -> None:
    """The finder of an editable install offers it to a package that was found elsewhere."""
    if isinstance(cpu.native(), str):
        pytest.skip("needs the extension")
    why = extension.why_missing(checkout(tmp_path))
    assert why is not None and f"is installed in {extension.PACKAGE};" in why


def test_started_in_the_checkout_python_says_where_the_extension_is(tmp_path: Path) -> None:
    """As after ``pip install .``: the folder of sources comes before what is installed."""
    sources, site = checkout(tmp_path), installed(tmp_path, ".py")
    code = f"import sys; sys.path.insert(1, {str(site.parent)!r})\n"
    code += "import torch, dmlap_kernels as d\n"
    code += "d.fused_nt_xent_loss(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path[1:]!r}\n{code}"],
        cwd=sources.parent,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "FallbackWarning: tensors on cpu are served by the backend 'torch'" in done.stderr
    assert f"installed in {site}; start Python in another folder" in done.stderr
