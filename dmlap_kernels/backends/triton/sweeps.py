"""The primitives of `dmlap_kernels.backends.device.sweeps`, one file a kind."""

from __future__ import annotations

from dmlap_kernels.backends.triton import extremes


class TritonSweeps:
    """See `dmlap_kernels.backends.device.sweeps.Sweeps`."""

    extremes = staticmethod(extremes.extremes)
