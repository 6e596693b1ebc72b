"""Every allocation names its device and every generator too, so that `torch.set_default_device`
changes nothing that is not the user's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import dmlap_kernels

FOLDER = Path(dmlap_kernels.__file__).parent
FACTORIES = frozenset(
    (
        *("arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace"),
        *("normal", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros", "Generator"),
    )
)
# Parameters and buffers of a module are where its user wants them.
MADE_FOR_THE_USER = {"losses.py": 3, "encoders.py": 1, "memory.py": 2}


def without_device(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch" and name in FACTORIES):
            continue
        if not any(keyword.arg in ("device", None) for keyword in node.keywords):
            found.append(f"{path.name}:{node.lineno}: torch.{name}")
    return found


@pytest.mark.parametrize(
    "path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.relative_to(FOLDER).as_posix()
)
def test_allocations_name_their_device(path: Path) -> None:
    found = without_device(path)
    allowed = MADE_FOR_THE_USER.get(path.name, 0)
    assert len(found) <= allowed, f"no device: {', '.join(found)}"


def test_memory_is_poisoned_in_tests() -> None:
    assert torch.empty(3).isnan().all()
    assert torch.zeros(2).new_empty(3, dtype=torch.int64).eq(torch.iinfo(torch.int64).max).all()
