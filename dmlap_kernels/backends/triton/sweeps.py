"""The primitives of `dmlap_kernels.backends.device.sweeps`, one file a kind."""

from __future__ import annotations

from dmlap_kernels.backends.triton import extremes as mining
from dmlap_kernels.backends.triton import gradient as backward
from dmlap_kernels.backends.triton import hinge, soft


class TritonSweeps:
    """See `dmlap_kernels.backends.device.sweeps.Sweeps`."""

    extremes = staticmethod(mining.extremes)
    hinge_sums = staticmethod(hinge.hinge_sums)
    log_sums = staticmethod(soft.log_sums)
    pair_terms = staticmethod(soft.pair_terms)
    gradient = staticmethod(backward.gradient)
