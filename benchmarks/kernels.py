"""Nothing is measured that is not there: the kernels that a benchmark is about must run."""

from __future__ import annotations

import dmlap_kernels
from dmlap_kernels.backends.registry import backends


class Missing(RuntimeError):
    """None of the kernels to be measured run here."""


def require(*names: str) -> None:
    """Raise `Missing` unless one of these backends runs here.

    A package without them serves every call by plain PyTorch, and its figures would pass for those
    of the kernels.
    """
    reasons = {name: backends()[name].unavailable() for name in names}
    if all(reasons.values()):
        which = " and ".join(names) + (" do" if len(names) > 1 else " does")
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise Missing(
            f"nothing is measured: {which} not run here, by the package in "
            f"{dmlap_kernels.__file__} ({why}); --without-kernels measures plain PyTorch all the "
            "same"
        )
