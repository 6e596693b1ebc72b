"""``help`` of the public functions of evaluation stands on its own, and its example runs."""

from __future__ import annotations

import inspect

import pytest

from dmlap_kernels import evaluation
from tests.test_docstrings import run_examples

FUNCTIONS = [n for n in evaluation.__all__ if inspect.isfunction(getattr(evaluation, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    if name != "retrieval_metrics":
        pytest.importorskip("faiss")
        pytest.importorskip("sklearn")
    function = getattr(evaluation, name)
    text = inspect.getdoc(function)
    assert text is not None and "Raises:" in text
    arguments = text[text.index("Args:") : text.index("Raises:")]
    for argument in inspect.signature(function).parameters:
        assert f"    {argument}: " in arguments, argument
    run_examples(name, text)
