"""The policies by the name of their loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from dmlap_kernels.backends.chunked import pairs, proxies, triplets
from dmlap_kernels.backends.chunked.blocks import Block
from dmlap_kernels.backends.chunked.terms import Terms

# Yields terms of a block, in as many parts as bounded memory takes.
Policy = Callable[[pairs.Params, Block], Iterator[Terms]]

POLICIES: dict[str, Policy] = {
    "triplet_hard": triplets.hard,
    "triplet_semihard": triplets.semihard,
    "triplet_all": triplets.every,
    "triplet_distance_weighted": triplets.distance_weighted,
    "contrastive": pairs.contrastive,
    "margin": pairs.margin,
    "multi_similarity": pairs.multi_similarity,
    "lifted_structure": pairs.lifted_structure,
    "lifted_structure_original": pairs.lifted_structure_original,
    "nt_xent": pairs.nt_xent,
    "n_pairs": pairs.n_pairs,
    "sup_con": pairs.sup_con,
    "angular": pairs.angular,
    "circle": pairs.circle,
    "proxy_nca": proxies.proxy_nca,
    "proxy_anchor": proxies.proxy_anchor,
    "soft_triple": proxies.soft_triple,
}

_TWO_GROUPS = frozenset(("contrastive", "proxy_anchor"))


def groups_of(loss: str) -> int:
    """How many groups its terms come in."""
    return 2 if loss in _TWO_GROUPS else 1


# What a loss must know of each reference (N,) before its terms, which find it in `block.of_refs`:
# the logarithm of a sum over anchors, here over those of a block. Gradients flow through it.
LOG_SUMS_BEFORE: dict[str, Callable[[pairs.Params, Block], Tensor]] = {
    "lifted_structure_original": pairs.log_sums_of_negatives,
}
