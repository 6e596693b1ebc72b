"""The losses of sentence-transformers, their computation replaced by fused sweeps.

The line that changes::

    from dmlap_kernels.compat import sentence_transformers as losses

in the place of ``from sentence_transformers.sentence_transformer import losses``. Every name of
that module is here. Each class that this package computes is a subclass of the original with its
constructor, so that trainers, model cards and other losses that wrap it go on as before; the rest
are the originals themselves:

======================================================== =====================================
``BatchAll-``, ``BatchHard-``, ``BatchHardSoftMargin-``, a fused sweep over tiles, O(B D) memory
``BatchSemiHardTripletLoss``
``MultipleNegativesRankingLoss``, ``...Symmetric...``,   a fused sweep for each side, O(B D)
``Cached...``
``GISTEmbedLoss``, ``CachedGISTEmbedLoss``               plain PyTorch, a block of rows at a time
``OnlineContrastiveLoss``                                plain PyTorch, without waiting for a GPU
``ContrastiveLoss``, ``TripletLoss``                     the originals: they are O(B D) already
``MatryoshkaLoss`` and all others                        the originals
======================================================== =====================================
"""

from __future__ import annotations

from dmlap_kernels.extras import require

require(
    "sentence_transformers", purpose="dmlap_kernels.compat.sentence_transformers", extra="bench"
)

from sentence_transformers.sentence_transformer import losses as _originals  # noqa: E402
from sentence_transformers.sentence_transformer.losses import *  # noqa: E402, F403

from dmlap_kernels.compat.sentence_transformers.batch_triplets import (  # noqa: E402
    BatchAllTripletLoss,
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
)
from dmlap_kernels.compat.sentence_transformers.guided import (  # noqa: E402
    CachedGISTEmbedLoss,
    GISTEmbedLoss,
)
from dmlap_kernels.compat.sentence_transformers.pairs import OnlineContrastiveLoss  # noqa: E402
from dmlap_kernels.compat.sentence_transformers.ranking_losses import (  # noqa: E402
    CachedMultipleNegativesRankingLoss,
    CachedMultipleNegativesSymmetricRankingLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)

FUSED = (
    BatchAllTripletLoss,
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    CachedMultipleNegativesSymmetricRankingLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
    OnlineContrastiveLoss,
)

__all__ = list(_originals.__all__)
