"""``help`` of every public name stands on its own, and its example runs."""

from __future__ import annotations

import doctest
import inspect

import pytest

import dmlap_kernels
import dmlap_kernels.functional
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES

FUNCTIONS = [n for n in dmlap_kernels.__all__ if inspect.isfunction(getattr(dmlap_kernels, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function = getattr(dmlap_kernels, name)
    text = inspect.getdoc(function)
    assert text is not None
    arguments = text[text.index("Args:") : text.index("Returns:")]
    described = {
        name.strip()
        for line in arguments.splitlines()
        if line.startswith("    ") and not line.startswith("     ") and ":" in line
        for name in line.partition(":")[0].split(",")
    }
    assert described == set(inspect.signature(function).parameters)
    assert "Raises:" in text and "Example:" in text
    for elsewhere in ("see the module", "see `", "as in `", "{"):
        assert elsewhere not in text
    run_examples(name, text)


@pytest.mark.parametrize("loss", LOSSES | PROXY_LOSSES)
def test_modules(loss: str) -> None:
    module = (LOSSES | PROXY_LOSSES)[loss]
    text = inspect.getdoc(module)
    assert text is not None and f"dmlap_kernels.fused_{loss}_loss" in text and "Example:" in text
    run_examples(module.__name__, text)


def run_examples(name: str, text: str) -> None:

    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert test.examples
    failures: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert result.failed == 0, "".join(failures)
