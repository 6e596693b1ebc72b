"""What a user reads where an optional dependency is missing or does not import."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmlap_kernels.extras import MissingExtra, require


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(MissingExtra, match=r"^x needs nowhere, which is not installed; install it"):
        require("nowhere.part", purpose="x")


@pytest.mark.parametrize(
    "body",
    [
        "raise ImportError('needs NumPy 2')",
        "raise RuntimeError('needs NumPy 2')",
        "raise AttributeError('needs NumPy 2')",
        "import absent_package_needs_NumPy_2",
    ],
)
def test_what_does_not_import_is_named_with_the_reason(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingExtra,
        match=r"does not import here \(.*needs.NumPy.2.*\); .*dmlap-kernels\[parquet\]",
    ):
        require("broken_package", purpose="x", extra="parquet")
