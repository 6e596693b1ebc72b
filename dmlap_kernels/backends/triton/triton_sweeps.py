"""The primitives of `dmlap_kernels.backends.device.sweeps`, one file a kind."""

from __future__ import annotations

from dmlap_kernels.backends.triton import extremes as mining
from dmlap_kernels.backends.triton import gradient as backward
from dmlap_kernels.backends.triton import hinge, soft, windows
from dmlap_kernels.backends.triton import nearest as search
from dmlap_kernels.backends.triton import soft_triple_kernels as centres
from dmlap_kernels.backends.triton.class_scores import class_scores


class TritonSweeps:
    """See `dmlap_kernels.backends.device.sweeps.Sweeps`."""

    extremes = staticmethod(mining.extremes)
    nearest_pairs = staticmethod(mining.nearest_pairs)
    hinge_sums = staticmethod(hinge.hinge_sums)
    logistic_sums = staticmethod(hinge.logistic_sums)
    log_sums = staticmethod(soft.log_sums)
    pair_terms = staticmethod(soft.pair_terms)
    gradient = staticmethod(backward.gradient)
    triplet_sums = staticmethod(windows.triplet_sums)
    triplet_gradient = staticmethod(windows.triplet_gradient)
    angular_terms = staticmethod(windows.angular_terms)
    angular_gradient = staticmethod(windows.angular_gradient)
    soft_triple = staticmethod(centres.soft_triple)
    soft_triple_gradient = staticmethod(centres.soft_triple_gradient)
    nearest = staticmethod(search.nearest)
    class_scores = staticmethod(class_scores)
