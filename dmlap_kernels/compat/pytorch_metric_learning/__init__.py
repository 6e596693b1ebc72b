"""The losses, miners and memory of pytorch-metric-learning, computed by the fused losses.

Import ``losses`` and ``miners`` from here and not from ``pytorch_metric_learning``, or pass what
you have to `fuse`.
"""

from __future__ import annotations

import importlib.util

from dmlap_kernels.extras import MissingExtra

if importlib.util.find_spec("pytorch_metric_learning") is None:
    raise MissingExtra(
        "dmlap_kernels.compat.pytorch_metric_learning needs pytorch-metric-learning, which is not "
        "installed; install it with: pip install pytorch-metric-learning"
    )

from dmlap_kernels.compat.pytorch_metric_learning import losses, miners
from dmlap_kernels.compat.pytorch_metric_learning.fuse import (
    explain,
    fuse,
    fuse_miner,
)
from dmlap_kernels.compat.pytorch_metric_learning.geometry import NotFused
from dmlap_kernels.compat.pytorch_metric_learning.knn import NearestKNN
from dmlap_kernels.compat.pytorch_metric_learning.losses import (
    AngularLoss,
    ArcFaceLoss,
    CircleLoss,
    ContrastiveLoss,
    CosFaceLoss,
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
from dmlap_kernels.compat.pytorch_metric_learning.miners import (
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    PairMarginMiner,
    TripletMarginMiner,
)

__all__ = [
    "AngularLoss",
    "ArcFaceLoss",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
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
