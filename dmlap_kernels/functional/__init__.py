"""`fused_*_loss`: names, defaults and documentation; nothing else happens here.

An anchor's positives P are the references of its label, its negatives N those of other labels.
``d`` is the distance ``"euclidean"``, ``"sqeuclidean"``, ``"cosine"`` (1 - cos) or, for losses of
similarities, ``"dot"`` (minus the inner product). Where a formula has a similarity ``s``, it is the
cosine or the inner product, and -d for the other two.
"""

from __future__ import annotations

from dmlap_kernels.functional import distances, proxies, similarities
from dmlap_kernels.functional.distances import *
from dmlap_kernels.functional.proxies import *
from dmlap_kernels.functional.similarities import *

__all__: list[str] = []
__all__ += distances.__all__
__all__ += proxies.__all__
__all__ += similarities.__all__
