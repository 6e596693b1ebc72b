"""`_native.pyi` lists what `python_bindings` define, with as many arguments."""

from __future__ import annotations

import ast
import re

import pytest

from dmlap_kernels.backends import cpu
from tests.build.conftest import ROOT

STUB = {
    node.name: [one.arg for one in node.args.args]
    for node in ast.parse((ROOT / "dmlap_kernels" / "_native.pyi").read_text()).body
    if isinstance(node, ast.FunctionDef)
}


@pytest.fixture
def extension(native: str):
    return cpu.native()


def test_the_stub_lists_every_binding() -> None:
    sources = (ROOT / "python_bindings").glob("*.cpp")
    bound = {name for file in sources for name in re.findall(r'm\.def\("(\w+)"', file.read_text())}
    assert set(STUB) == bound


@pytest.mark.parametrize("name", STUB)
def test_arguments(name: str, extension) -> None:
    """pybind11 writes the signature into the first line of the docstring."""
    function = getattr(extension, name, None)
    if function is None:
        assert name.startswith("cuda_"), f"the module has no {name}"
        pytest.skip("built without CUDA")
    signature = function.__doc__.splitlines()[0]
    assert len(re.findall(r"\barg\d+: ", signature)) == len(STUB[name]), signature


def test_the_module_has_nothing_else(extension) -> None:
    names = {name for name in dir(extension) if callable(getattr(extension, name))}
    assert {name for name in names if not name.startswith("__")} <= set(STUB)
