"""The one interface between the losses of `backends/device` and what goes through pairs for them.

All vectors are on the device, in the order of `Sides`, and of the dtype of its rows where float32
is said; anchors are rows i, references columns j; -1 stands for no column; equal distances go to
the lower column. The pair of an anchor and itself is neither positive nor negative
(`Sides.self_case`, `Sides.itself`). Every method is deterministic; kernels are launched on the
current stream of their tensors' device and wait for nothing. No kernel holds a (B, N) tensor, and
any method may be called with no anchors or no columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides


class Exponent(NamedTuple):
    """e(d) = rate (d - zero), or with a side (1 or -1): rate [side (d - pivot)]+ (d - zero), whose
    bracket counts as a constant in the derivative; as in
    ``csrc/include/dmlap/policies/exponent.h``."""

    rate: float
    zero: float = 0.0
    side: int = 0
    pivot: float = 0.0


class Extremes(NamedTuple):
    """Farthest positive and nearest negative of each anchor.

    Distances (B,) float32 (-inf and inf where there is none) and columns (B,) int32. Unless asked
    for, the sums are None: (k,) float32 numbers that add up to the sums of the distances of all
    positive and of all negative pairs of the call.
    """

    positive: Tensor
    positive_column: Tensor
    negative: Tensor
    negative_column: Tensor
    positive_sum: Tensor | None
    negative_sum: Tensor | None


class HingeSums(NamedTuple):
    """Of each anchor (B,): the sums of the hinges of positives and negatives, plain and as the loss
    takes them (squared or not), float32; how many are strictly positive, int32."""

    positive: Tensor
    negative: Tensor
    positive_hinge: Tensor
    negative_hinge: Tensor
    positive_active: Tensor
    negative_active: Tensor


class LogSums(NamedTuple):
    """Of each anchor (B,) float32: log of the sum of e^exponent(d) over positives and over
    negatives (-inf if there is none), and the sum of the exponents of the positives."""

    pos_lse: Tensor
    neg_lse: Tensor
    exponent_sum: Tensor


class PairTerms(NamedTuple):
    """Of each anchor (B,) over its positive pairs: the sum of terms, float32; how many are strictly
    positive, int32; the sum of their derivatives by the anchor's neg_lse, float32."""

    total: Tensor
    nonzero: Tensor
    by_neg_lse: Tensor


class Triplets(NamedTuple):
    """Terms [d_ap - d_an + margin]+, or their softplus if smooth; with swap d_an is the lesser of
    d_an and d_pn.

    Attributes:
        mining: what negatives a positive pair meets. ``semihard``: the nearest with d_an > d_ap,
            else the farthest. ``all``: every one. ``distance_weighted``: one drawn by the inverse
            of the density of distances between unit rows, by the last three numbers, as
            ``csrc/include/dmlap/policies/triplet.h`` says.
    """

    mining: str
    margin: float
    smooth: bool = False
    swap: bool = False
    cutoff: float = 0.0
    beyond: float = 0.0
    seed: Any = 0


class PairGradient(NamedTuple):
    """What gives d loss / d d of a pair, for `Sweeps.gradient`.

    The weight of a pair is the part of its anchor, from a column of ``anchors``, plus the part of
    its reference, from a column of ``columns``, where there are such; in the self case each row is
    both, and ``columns`` is None. With e_p and e_n the exponents, the part of an end is:

    ``hinge``, of [d - pb]+ and [nb - d]+; rows pb, nb, sp, sn:
        sp [d > pb] of positives, -sn [d < nb] of negatives
    ``squared_hinge``, the same rows:
        2 sp [d - pb]+ and -2 sn [nb - d]+
    ``exponential``; rows pos_lse, neg_lse, by_pos_lse, by_neg_lse, by_exponent:
        (by_pos_lse e^(e_p(d) - pos_lse) + by_exponent) slope_p(d)
        and by_neg_lse e^(e_n(d) - neg_lse) slope_n(d)
    ``mined``; two more rows, above and below: the same of positives with d > above and of negatives
        with d < below
    ``nt_xent``, terms log(1 + e^(e_p(d) + neg_lse)); rows neg_lse, weight, by_neg_lse:
        weight sigmoid(e_p(d) + neg_lse) slope_p(d) and by_neg_lse e^(e_n(d) - neg_lse) slope_n(d)
    ``lifted``, terms [e_p(d) + log(e^neg_lse + e^neg_lse')]+^2 / 2 with neg_lse' of the other end
        (0 if both are -inf), for which both ends have coefficients; the same rows:
        weight [...]+ slope_p(d) and by_neg_lse e^(e_n(d) - neg_lse) slope_n(d)
    ``logistic``, terms log(1 + e^(e(d))); row weight:
        weight sigmoid(e_p(d)) slope_p(d) and weight sigmoid(e_n(d)) slope_n(d)

    Kinds of losses that see more than a pair are with the methods that they belong to.

    Attributes:
        kind: one of the names above.
        anchors: (rows, B) float32, or None. Of sweeps that read no memory, the rows as they are:
            (B,) each, a number that all anchors have, or None where there is none to add.
        columns: (rows, N) float32, or None.
        positive, negative: exponents of the kinds that have them.
    """

    kind: str
    anchors: Tensor | None
    columns: Tensor | None = None
    positive: Exponent = Exponent(0.0)
    negative: Exponent = Exponent(0.0)

    @property
    def sparse(self) -> bool:
        """Whether many pairs may have no weight, those of whole tiles among them."""
        return self.kind in ("hinge", "squared_hinge")


# Gradients at x and at y, as `Sweeps.gradient` says.
Both = tuple[Tensor | None, Tensor | None]


class Sweeps(Protocol):
    """The kernels of a backend."""

    def extremes(self, sides: Sides, sums: bool) -> Extremes: ...

    def nearest_pairs(self, sides: Sides, negative_above: Tensor | None = None) -> Extremes:
        """The nearest positive of each anchor, inf and -1 where there is none, and its nearest
        negative, with bounds (B,) float32 that with d > negative_above. Without sums."""

    def hinge_sums(
        self, sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
    ) -> HingeSums:
        """Sums of [d - positive_bound]+ over positives, [negative_bound - d]+ over negatives, the
        bounds (B,) float32.

        Sweeps that read no memory may be told what fields are ``read``, as in `log_sums`, and take
        bounds that are numbers."""

    def logistic_sums(self, sides: Sides, positive: Exponent, negative: Exponent) -> Tensor:
        """The sums (B,) float32 of log(1 + e^(e(d))) over positives and negatives together, each
        with its exponent."""

    def log_sums(
        self,
        sides: Sides,
        positive: Exponent,
        negative: Exponent,
        positive_above: Tensor | None = None,
        negative_below: Tensor | None = None,
        read: tuple[str, ...] = LogSums._fields,
    ) -> LogSums:
        """Log-sums over the positives with d > positive_above and the negatives with
        d < negative_below, (B,) float32 each; over all where None (both are, or neither).

        The caller reads the fields ``read`` alone; others may be any tensors (B,)."""

    def pair_terms(
        self,
        sides: Sides,
        kind: str,
        exponent: Exponent,
        neg_lse: Tensor,
        neg_lse_of_columns: Tensor | None = None,
        weight_of_columns: Tensor | None = None,
    ) -> PairTerms:
        """Terms of positive pairs, of kind ``nt_xent`` or ``lifted`` as in `PairGradient`.

        ``neg_lse`` (B,), ``neg_lse_of_columns`` (N,) for lifted. With ``weight_of_columns`` (N,)
        each derivative counts with the weight of its column in ``by_neg_lse``: called with swapped
        sides, that is what the anchors' weighted terms give their references. Sweeps that read no
        memory may be told what fields are ``read``.
        """

    def gradient(self, sides: Sides, pair_gradient: PairGradient) -> Both:
        """The gradients (B, Dp) at x and (N, Dp) at y of a loss whose pairs have these weights.

        In the self case the first holds both halves, and the second is None; so is one that the
        sides do not want. A pair at Euclidean distance 0 adds nothing.
        """

    def triplet_sums(self, sides: Sides, triplets: Triplets) -> Tensor:
        """Of each anchor's triplets (B, 5) float64: the sum of terms and how many are strictly
        positive, the sum of hinges and how many are strictly positive, how many there are."""

    def triplet_gradient(self, sides: Sides, triplets: Triplets, weight: Tensor) -> Both:
        """As `gradient`, of the sums of terms of `triplet_sums` times weight (B,)."""

    def angular_terms(self, sides: Sides, tangent: float) -> Tensor:
        """For the positives of each anchor the terms log(1 + sum over negatives n of
        e^(4 t (s_an + s_pn) - 2 (1 + t) s_ap)) with t = tangent^2: their sums (B,) and how many
        are strictly positive (B,), stacked (2, B) float32."""

    def angular_gradient(self, sides: Sides, tangent: float, weight: Tensor) -> Both:
        """As `gradient`, of the sums of `angular_terms` times weight (B,)."""

    def soft_triple(self, sides: Sides, la: float, gamma: float, margin: float) -> Tensor:
        """SoftTriple's terms (B,) float32 and what its backward needs of each anchor (K, B),
        stacked (1 + K, B); anchors without positives count 0."""

    def soft_triple_gradient(
        self, sides: Sides, la: float, gamma: float, margin: float, kept: Tensor, weight: Tensor
    ) -> Both:
        """As `gradient`, of the terms of `soft_triple` times weight (B,)."""

    def nearest(self, sides: Sides, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest columns of each anchor whatever the labels: distances (B, k) ascending and
        columns (B, k) int64; in the self case without the anchor itself."""

    def class_scores(
        self, sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Negative pairs between classes, whose anchors end before ``ends_x`` (Ca,) and columns
        before ``ends_y`` (Cr,), int64: sums of [thresholds_i - d]+ and smallest distances, (Ca, Cr)
        float32; 0 and inf where the labels are equal."""


class UnorderedSweeps(Sweeps, Protocol):
    """Sweeps that compare labels, and so take rows in any order (`Sides.in_label_order`)."""

    def count_positives(self, sides: Sides) -> Tensor:
        """(B,) int64, how many positive pairs each anchor has."""
