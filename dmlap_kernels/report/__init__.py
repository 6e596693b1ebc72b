"""The page of `dmlap report` (`dmlap_kernels.report.page`): what runs wrote, read and drawn.

`plot_curves`, the picture of one run, is the trainer's, which draws it at the end of each.
"""

from __future__ import annotations

from dmlap_kernels.trainer.curves import plot_curves

__all__ = ["plot_curves"]
