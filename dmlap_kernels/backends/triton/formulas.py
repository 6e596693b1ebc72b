"""Formulas of a plan as Triton functions."""

from __future__ import annotations

import functools
import linecache
from typing import Any

import triton
import triton.language as tl

from dmlap_kernels.backends.triton import policies
from dmlap_kernels.backends.triton.policies import log_add, sigmoid, softplus


@functools.cache
def function(text: str) -> Any:
    """Of the text of a function called ``formula``; equal texts give one function."""
    # Triton reads the source of a function from its file, or from here.
    name = f"<dmlap_kernels formula {len(_names)}>"
    _names.append(name)
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {
        "__name__": policies.__name__,
        "tl": tl,
        "log_add": log_add,
        "sigmoid": sigmoid,
        "softplus": softplus,
    }
    exec(compile(text, name, "exec"), space)
    return triton.jit(space["formula"])


_names: list[str] = []
