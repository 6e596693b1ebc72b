"""The test classes that an encoder tells apart worst."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.mining import hard_classes
from dmlap_kernels.report.markup import Html, element
from dmlap_kernels.report.runs import Embedded
from dmlap_kernels.report.thumbnails import thumbnail

PAIRS = 8
_SAMPLES = 4
_MOST_ROWS = 4096


class ClassPair(NamedTuple):
    """Two labels, the mean violation of their pairs of samples, their smallest distance."""

    first: int
    second: int
    score: float
    distance: float


def hardest_pairs(embedded: Embedded, count: int = PAIRS) -> tuple[list[ClassPair], float]:
    """The hardest pairs of classes, hardest first, and the margin of their scores.

    The margin is the mean distance between samples of different classes, estimated from random
    pairs: with a loss's own margin every score may be zero. Of large splits every class brings as
    many samples as keep the rows to 4,096, and at least one.
    """
    split = embedded.split
    if split.num_classes < 2:
        return [], 0.0
    rows = _bounded(split.labels, max(1, _MOST_ROWS // split.num_classes))
    embeddings, labels = embedded.embeddings[rows], split.labels[rows]
    margin = _typical_distance(embedded)
    k = min(count, split.num_classes - 1)
    found = hard_classes(embeddings, labels, k, margin=margin, **embedded.options)
    pairs: dict[tuple[int, int], ClassPair] = {}
    for row, first in enumerate(found.classes.tolist()):
        for column, second in enumerate(found.neighbors[row].tolist()):
            score, distance = found.scores[row, column], found.distances[row, column]
            key = (min(first, second), max(first, second))
            pairs.setdefault(key, ClassPair(*key, float(score), float(distance)))
    order = sorted(pairs.values(), key=lambda pair: (-pair.score, pair.distance, pair[:2]))
    return order[:count], margin


def _bounded(labels: Tensor, most: int) -> Tensor:
    """Rows of at most ``most`` samples of every class, the first ones."""
    order = labels.argsort(stable=True)
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels), device="cpu") - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[rank < most]


def _typical_distance(embedded: Embedded) -> float:
    """Mean distance of 4,096 random pairs of samples of different classes."""
    x, labels = embedded.comparable(), embedded.split.labels
    random = torch.Generator(device="cpu").manual_seed(0)
    i, j = torch.randint(len(x), (2, _MOST_ROWS), generator=random, device="cpu")
    other = labels[i] != labels[j]
    distances = (x[i[other]] - x[j[other]]).norm(dim=1)
    if embedded.options["distance"] == "sqeuclidean":
        distances = distances.square()
    elif embedded.options["distance"] == "cosine":
        distances = distances.square() / 2
    return float(distances.mean()) if len(distances) else 1.0


def render_pairs(embedded: Embedded) -> Html:
    """The hardest pairs, with samples of both classes."""
    pairs, margin = hardest_pairs(embedded)
    if not pairs:
        return element("p", "There is one test class only: no pairs.")
    intro = element(
        "p",
        f"{_which(embedded)} closest. The score is the mean over pairs of their images of "
        f"[{margin:.3g} - distance]+, where {margin:.3g} is the mean distance of images of "
        "different classes.",
    )
    return element("div", intro, *(_render_pair(embedded, pair) for pair in pairs))


def _which(embedded: Embedded) -> str:
    seen, classes = len(embedded.seen), embedded.split.num_classes
    if not seen:
        return "Classes that the encoder, which has never seen them, puts"
    some = "all" if seen == classes else f"{seen} of the {classes}"
    return f"Test classes ({some} also in training) that the encoder puts"


def _render_pair(embedded: Embedded, pair: ClassPair) -> Html:
    names = embedded.split.class_names
    sides = []
    for label in (pair.first, pair.second):
        members = (embedded.split.labels == label).nonzero().flatten()[:_SAMPLES].tolist()
        images = (thumbnail(embedded.split, i, f"class {names[label]}") for i in members)
        caption = element("figcaption", names[label])
        sides.append(element("figure", element("div", *images), caption, class_="class"))
    facts = element("p", f"score {pair.score:.4f}, smallest distance {pair.distance:.4f}")
    return element("div", *sides, facts, class_="pair")
