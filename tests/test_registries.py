"""A loss has its name in several places; what misses it is named by its file.

One test for each name, so that ``-k NAME``, by which one works on a loss, runs the one about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

import dmlap_kernels
from dmlap_kernels import cli_train, functional, losses
from dmlap_kernels.backends import cpu, planted
from dmlap_kernels.backends.device.families import FAMILIES
from tests.losses.losses_table import LOSSES as ROWS
from tests.reference.losses import FORMULAS

DOCS = Path(__file__).parents[1] / "docs"


def function_names(names: Iterable[str]) -> set[str]:
    """X of every ``fused_X_loss``."""
    parts = (name.removesuffix("_loss") for name in names if name.endswith("_loss"))
    return {name.removeprefix("fused_") for name in parts}


def documented(*pages: Path) -> set[str]:
    text = "\n".join(page.read_text() for page in pages)
    return {name for name in PUBLIC_NAMES if f"fused_{name}_loss" in text}


GROUPS = (functional.distances, functional.proxies, functional.similarities)
(CHOICES,) = (set(o.choices or ()) for o in cli_train.MAIN if o.flag == "--loss")
# Where the public names stand, and the names of what computes them: a variant such as a mining of
# the triplet loss is computed by a policy of its own.
PUBLIC: dict[str, set[str]] = {
    "dmlap_kernels/functional/": function_names(name for group in GROUPS for name in vars(group)),
    "__all__ of dmlap_kernels/functional/": function_names(functional.__all__),
    "dmlap_kernels/__init__.py": function_names(dmlap_kernels.__all__),
    "dmlap_kernels/losses.py": {*losses.LOSSES, *losses.PROXY_LOSSES},
    "dmlap_kernels/cli_train.py": CHOICES,
    "tests/losses/losses_table.py": function_names(row.function for row in ROWS.values()),
}
PUBLIC_NAMES = sorted(set().union(*PUBLIC.values()))
PUBLIC["docs/losses/"] = documented(*(p for p in DOCS.glob("losses/*.md") if p.stem != "index"))
PUBLIC["docs/losses/index.md"] = documented(DOCS / "losses" / "index.md")
POLICIES: dict[str, set[str]] = {
    "dmlap_kernels/backends/device/": set(FAMILIES),
    "dmlap_kernels/backends/planted.py": set(planted.PARAMS),
    "tests/reference/": set(FORMULAS),
    "tests/losses/losses_table.py": set(ROWS),
}
if not isinstance(cpu.native(), str):
    POLICIES["csrc/include/dmlap/losses.h"] = set(cpu.native().losses())
POLICY_NAMES = sorted(set().union(*POLICIES.values()))


def missing(name: str, places: dict[str, set[str]]) -> list[str]:
    return [file for file, names in places.items() if name not in names]


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_file_has_the_loss(name: str) -> None:
    assert not missing(name, PUBLIC), f"{name} is missing from {missing(name, PUBLIC)}"


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_file_has_what_computes_it(name: str) -> None:
    assert not missing(name, POLICIES), f"{name} is missing from {missing(name, POLICIES)}"
    owners = [public for public in PUBLIC_NAMES if name.startswith(public)]
    assert owners, f"no public name begins {name}"


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_something_computes_the_loss(name: str) -> None:
    assert any(policy.startswith(name) for policy in POLICY_NAMES)


def test_a_missing_name_is_seen() -> None:
    places = {"a.py": {"triplet", "margin"}, "b.py": {"triplet"}}
    assert missing("margin", places) == ["b.py"]
