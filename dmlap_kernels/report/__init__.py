"""Pictures of runs: ``curves.png`` of one run, and the page of `dmlap report` for several.

The trainer draws `plot_curves`; the page (`dmlap_kernels.report.page`) reads what the trainer wrote
and therefore is not imported here.
"""

from __future__ import annotations

from dmlap_kernels.report.curves import plot_curves

__all__ = ["plot_curves"]
