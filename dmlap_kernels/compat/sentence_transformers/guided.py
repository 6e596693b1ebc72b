"""GISTEmbed (2402.16829): a guide's similarities say which negatives are none.

The fused sweeps have no mask of pairs. These losses are plain PyTorch over blocks of rows, each
computed again in backward: O(B D) memory and one block, where the originals keep B x B x D.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sentence_transformers import util
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmlap_kernels.problem import compute_dtype

# Similarities in one block.
BLOCK_ELEMENTS = 2**22
# Two equal texts have equal similarities in the original, which is no false negative; here they may
# differ by the rounding of two products.
TIE_ULPS = 16


class GISTEmbedLoss(losses.GISTEmbedLoss):
    """``losses.GISTEmbedLoss`` over blocks of rows."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        features = list(sentence_features)
        # The models write into the features that they are given.
        copies = [dict(column) for column in features]
        embeddings = embed_columns(self.model, features)
        if len(embeddings) not in (2, 3):
            raise ValueError(
                f"{type(self).__name__} takes anchors, positives and at most one column of "
                f"negatives, got {len(embeddings)} column(s)"
            )
        with torch.no_grad():
            if self.must_retokenize:
                copies = [self._for_guide(column) for column in copies]
            guides = embed_columns(self.guide, copies)
        return guided_loss(self, embeddings, guides)

    def _for_guide(self, column: dict[str, Any]) -> dict[str, Any]:
        """The texts of ``column`` in the tokens of the guide."""
        tokens = column["input_ids"]
        if (ends := column.get("cu_seq_lens_q")) is not None:  # one text behind the other
            tokens = [part.tolist() for part in tokens[0].tensor_split(ends[1:-1].cpu())]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return util.batch_to_device(self.guide.preprocess(texts), self.guide.device)


class CachedGISTEmbedLoss(losses.CachedGISTEmbedLoss):
    """``losses.CachedGISTEmbedLoss``: the texts in mini-batches, as there; the loss over blocks of
    rows."""

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        reps_guided: list[list[Tensor]],
        *,
        with_backward: bool = False,
    ) -> Tensor:
        columns = [torch.cat(parts) for parts in reps]
        loss = guided_loss(self, columns, [torch.cat(parts) for parts in reps_guided])
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()


class _Side(NamedTuple):
    """Rows of unit length (B, D) and what they are compared with (M, D)."""

    rows: Tensor
    candidates: Tensor


def guided_loss(options: Any, columns: list[Tensor], guides: list[Tensor]) -> Tensor:
    """The loss () of anchors, positives and any columns of negatives, with ``options`` as the
    attributes of the originals."""
    rows, first = len(columns[0]), 0
    with torch.autocast(columns[0].device.type, enabled=False):
        columns, guides = _unit_rows(columns), _unit_rows(guides)
        if options.gather_across_devices:
            columns, guides = (
                [some[0], *(util.all_gather_with_grad(one) for one in some[1:])]
                for some in (columns, guides)
            )
            first = util.get_rank() * rows
        own, guide_own = _sides(options, columns, first), _sides(options, guides, first)
        width = sum(len(side.candidates) for side in own)
        height = max(1, BLOCK_ELEMENTS // max(1, width))
        total = columns[0].new_zeros(())
        for begin in range(0, rows, height):
            end = min(begin + height, rows)
            total = total + checkpoint(
                _block,
                options,
                own,
                guide_own,
                begin,
                end,
                first,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total / rows


def _unit_rows(columns: list[Tensor]) -> list[Tensor]:
    return [F.normalize(one.to(compute_dtype(one.dtype)), eps=1e-8) for one in columns]


def _sides(options: Any, columns: list[Tensor], first: int) -> list[_Side]:
    """The anchors with their candidates, the positives of all devices first; then, if they are
    contrasted, the positives with positives."""
    anchors, positives, *negatives = columns
    among = [anchors] if options.contrast_anchors else []
    sides = [_Side(anchors, torch.cat((positives, *among, *negatives)))]
    if options.contrast_positives:
        sides.append(_Side(positives[first : first + len(anchors)], positives))
    return sides


def _block(
    options: Any, sides: list[_Side], guides: list[_Side], begin: int, end: int, first: int
) -> Tensor:
    """The sum of the terms of the anchors ``begin`` to ``end``."""
    here = torch.arange(end - begin, device=sides[0].rows.device)
    positive = here + first + begin
    bound, scores = None, []
    for side, guide in zip(sides, guides, strict=True):
        similarity = side.rows[begin:end] @ side.candidates.T
        with torch.no_grad():
            known = guide.rows[begin:end] @ guide.candidates.T
            if bound is None:
                bound = known[here, positive][:, None]
                margin = options.margin
                bound = bound - (
                    bound.abs() * margin if options.margin_strategy == "relative" else margin
                )
                bound = bound + TIE_ULPS * torch.finfo(known.dtype).eps
                false = known > bound
                false[here, positive] = False
            else:
                false = known > bound
        scores.append(similarity.masked_fill(false, -torch.inf))
    logits = torch.cat(scores, dim=1) / options.temperature
    return F.cross_entropy(logits, positive, reduction="sum")
