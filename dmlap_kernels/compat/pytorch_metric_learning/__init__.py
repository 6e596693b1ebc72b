"""The losses, miners and memory of pytorch-metric-learning, computed by the fused losses.

Import ``losses`` and ``miners`` from here and not from ``pytorch_metric_learning``, or pass what
you have to `fuse`.
"""

from __future__ import annotations

from dmlap_kernels import extras

extras.require(
    "pytorch_metric_learning", purpose="dmlap_kernels.compat.pytorch_metric_learning", extra="test"
)

from dmlap_kernels.compat.pytorch_metric_learning import losses, miners  # noqa: E402
from dmlap_kernels.compat.pytorch_metric_learning.fuse import (  # noqa: E402
    explain,
    fuse,
    fuse_miner,
)
from dmlap_kernels.compat.pytorch_metric_learning.geometry import NotFused  # noqa: E402
from dmlap_kernels.compat.pytorch_metric_learning.knn import NearestKNN  # noqa: E402
from dmlap_kernels.compat.pytorch_metric_learning.losses import (  # noqa: E402
    AngularLoss,
    CircleLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SupConLoss,
    TripletMarginLoss,
)
from dmlap_kernels.compat.pytorch_metric_learning.miners import (  # noqa: E402
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    PairMarginMiner,
    TripletMarginMiner,
)

__all__ = [
    "AngularLoss",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "CircleLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "DistanceWeightedMiner",
    "GeneralizedLiftedStructureLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "MultiSimilarityMiner",
    "NPairsLoss",
    "NTXentLoss",
    "NearestKNN",
    "NotFused",
    "PairMarginMiner",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TripletMarginMiner",
    "explain",
    "fuse",
    "fuse_miner",
    "losses",
    "miners",
]
