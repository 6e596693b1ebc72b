"""Every loss by name, from its tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.reference import exponentials, margins, proxies, triplets
from tests.reference.pairs import Pairs, Terms, make_pairs, reduce_terms

# Every public function of these modules that returns the terms of a loss.
FORMULAS: dict[str, Callable[..., Terms]] = {
    name: formula
    for module in (triplets, margins, exponentials, proxies)
    for name, formula in vars(module).items()
    if inspect.isfunction(formula)
    and not name.startswith("_")
    and formula.__annotations__.get("return") == "Terms"
}


def pairs_and_terms(
    name: str,
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    distance: str = "euclidean",
    normalize: bool = False,
    self_index: Tensor | None = None,
    **options: Any,
) -> tuple[Pairs, Terms]:
    """The pairs of a call and what the loss makes of them; ``options`` are the loss's own.

    Proxies are references, but anchors in proxy-anchor. Distance-weighted triplets are mined among
    unit rows, whatever ``normalize`` says.
    """
    normalize = normalize or name == "triplet_distance_weighted"
    shared = {"distance": distance, "normalize": normalize}
    if name == "proxy_anchor":
        assert y is not None and ref_labels is not None
        pairs = make_pairs(y, ref_labels, x, labels, **shared)
    else:
        pairs = make_pairs(x, labels, y, ref_labels, self_index=self_index, **shared)
    return pairs, FORMULAS[name](pairs, **options)


def loss(
    name: str,
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """The loss; differentiable in x, y and in options that are tensors."""
    _, terms = pairs_and_terms(name, x, labels, y, ref_labels, **options)
    return reduce_terms(terms, reduction)
