"""Kernels are either interpreted or compiled in a process: ``TRITON_INTERPRET=1 python -m pytest
tests/triton`` runs the tests of the first kind, which otherwise run in processes of their own."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = ["test_*.py"] if INTERPRETED else ["interpreted/*"]
