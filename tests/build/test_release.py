"""What a release holds, and that it works where it is installed."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.build.conftest import ROOT, run

LOSS = """
import json, torch, dmlap_kernels
from dmlap_kernels.backends import registry
labels = torch.tensor([0, 0, 1, 1, 2, 2])
torch.manual_seed(0)
x = torch.randn(6, 3, requires_grad=True)
loss = dmlap_kernels.fused_triplet_loss(x, labels)
loss.backward()
again = dmlap_kernels.fused_triplet_loss(x, labels, backend="torch")
assert torch.allclose(loss, again)
print(json.dumps([
    dmlap_kernels.__file__,
    registry.choose("auto", None, x).name,
    bool(x.grad.isfinite().all()),
]))
"""


def package_files(root):
    """Paths of the package's modules and configurations, relative to the root of a source tree."""
    package = Path(root, "dmlap_kernels")
    found = {
        p.relative_to(root).as_posix()
        for kind in ("*.py", "configs/*.json")
        for p in package.rglob(kind)
    }
    assert "dmlap_kernels/functional/__init__.py" in found
    return found | {"dmlap_kernels/py.typed"}


def test_sdist_holds_every_source(sources, sdist):
    folders = ("csrc", "python_bindings", "dmlap_kernels", "tests", "benchmarks", ".ci")
    for folder in (*folders, "docs", "examples"):
        wanted = {p.relative_to(sources) for p in (sources / folder).rglob("*") if p.is_file()}
        missing = [p for p in wanted if p.suffix != ".pyc" and not (sdist / p).exists()]
        assert not missing
    for name in ("LICENSE", "README.md", "CONTRIBUTING.md", "pyproject.toml", "setup.py"):
        assert (sdist / name).exists()


def test_releases_hold_no_build_outputs(sdist, pure_wheel):
    assert not [p for p in sdist.rglob("*") if p.suffix in (".so", ".o", ".pyc")]
    assert not [n for n in zipfile.ZipFile(pure_wheel).namelist() if n.endswith((".so", ".pyc"))]


def test_wheel_holds_the_package_and_the_extension(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert package_files(ROOT) <= set(names)
    assert [n for n in names if n.startswith("dmlap_kernels/_native.")]
    outside = [n for n in names if not n.startswith(("dmlap_kernels/", "dmlap_kernels-"))]
    assert not outside
    assert "-none-any" not in wheel.name


def test_wheel_without_a_compiler_is_for_any_machine(pure_wheel):
    assert package_files(ROOT) <= set(zipfile.ZipFile(pure_wheel).namelist())
    assert pure_wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize("native", [True, False])
def test_a_loss_runs_where_it_is_installed(request, native, tmp_path):
    site = request.getfixturevalue("installed" if native else "installed_pure")
    done = run([sys.executable, "-c", LOSS], tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout
    place, backend, finite = json.loads(done.stdout.splitlines()[-1])
    assert Path(place).parent.parent == site
    assert backend == ("cpu" if native else "torch")
    assert finite


def test_asking_for_the_missing_extension_says_so(installed_pure, tmp_path):
    ask = LOSS.replace("labels)\nloss.b", 'labels, backend="cpu")\nloss.b')
    assert ask != LOSS
    done = run([sys.executable, "-c", ask], tmp_path, PYTHONPATH=str(installed_pure))
    assert done.returncode == 1
    assert "backend 'cpu' is not available: the extension was not built" in done.stdout


@pytest.mark.parametrize("native", [True, False])
def test_info_of_an_installation(request, native, tmp_path):
    site = request.getfixturevalue("installed" if native else "installed_pure")
    done = run([site / "bin" / "dmlap", "info", "--json"], tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout
    info = json.loads(done.stdout)
    assert info["version"] == "0.2.0"
    usable = {name: state["usable"] for name, state in info["backends"].items()}
    assert usable == {"cpu": native, "torch": True, "cuda": False, "triton": False}
    assert (info["built"] is not None) == native
    if native:
        assert info["built"]["cuda_archs"] is None
        assert "without CUDA" in info["backends"]["cuda"]["reason"]
        assert info["simd"]["level"] in info["built"]["instruction_sets"]
    else:
        assert "not built" in info["backends"]["cpu"]["reason"]
