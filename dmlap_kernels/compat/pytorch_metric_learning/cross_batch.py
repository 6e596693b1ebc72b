"""Their `CrossBatchMemory` without its list of all pairs of the batch and the queue."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from dmlap_kernels.compat.pytorch_metric_learning.lazy import Mined


class CrossBatchMemory(theirs.CrossBatchMemory):
    """Their ``CrossBatchMemory``: a fused loss runs one sweep over the batch and the queue, and no
    anchor meets itself.

    With a loss of theirs, or where the caller gives an ``indices_tuple`` as well, it is theirs.
    """

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Any:
        skip = None
        if do_remove_self_comparisons:
            skip = self.curr_batch_idx
        mined: Any = Mined(None, embeddings, labels, E_mem, L_mem, skip)
        if self.miner:
            mined = self.miner(embeddings, labels, E_mem, L_mem)
            if isinstance(mined, Mined):
                mined.skip = skip
            elif skip is not None:
                mined = lmu.remove_self_comparisons(mined, self.curr_batch_idx, self.memory_size)
        if input_indices_tuple is None:
            return mined
        given = tuple(input_indices_tuple)
        if len(given) == 3 and len(mined) == 4:
            given = lmu.convert_to_pairs(given, labels)
        elif len(given) == 4 and len(mined) == 3:
            given = lmu.convert_to_triplets(given, labels)
        return c_f.concatenate_indices_tuples(tuple(mined), given)
