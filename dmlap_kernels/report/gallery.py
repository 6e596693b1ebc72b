"""Queries of the test classes with their nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.data import Split
from dmlap_kernels.mining import nearest
from dmlap_kernels.report.markup import Html, element
from dmlap_kernels.report.runs import Embedded
from dmlap_kernels.report.thumbnails import thumbnail

QUERIES = 12
NEIGHBORS = 8


class Query(NamedTuple):
    """A query, its neighbours by rank (rows of what it is looked up in), and which are right."""

    row: int
    neighbors: list[int]
    right: list[bool]


def choose_queries(
    embedded: Embedded, queries: int = QUERIES, neighbors: int = NEIGHBORS
) -> list[Query]:
    """Queries spread evenly over the test split, those with a wrong first neighbour first.

    Half of them have a wrong first neighbour, or as many as there are; queries alone in their
    class, which can have no right one, are left out.
    """
    labels = embedded.split.labels
    if embedded.gallery is None:
        references, reference_labels, itself = None, labels, 1
    else:
        references, reference_labels, itself = embedded.gallery[1], embedded.gallery[0].labels, 0
    k = min(neighbors, len(reference_labels) - itself)
    if k < 1:
        return []
    found = nearest(embedded.embeddings, references, k, **embedded.options).indices  # [N, k]
    right = reference_labels[found] == labels[:, None]
    valid = torch.bincount(reference_labels)[labels] > itself
    wrong_first = (valid & ~right[:, 0]).nonzero().flatten()
    right_first = (valid & right[:, 0]).nonzero().flatten()
    wrong_count = min(len(wrong_first), max(queries // 2, queries - len(right_first)))
    right_count = min(len(right_first), queries - wrong_count)
    chosen = [*_spread(wrong_first, wrong_count), *_spread(right_first, right_count)]
    return [Query(i, found[i].tolist(), right[i].tolist()) for i in chosen]


def _spread(rows: Tensor, count: int) -> list[int]:
    """``count`` of the rows, evenly spaced."""
    if count == 0:
        return []
    positions = (torch.arange(count, device="cpu") * len(rows)) // count
    return rows[positions].tolist()


def render_gallery(embedded: Embedded) -> Html:
    """Queries, one a row, each neighbour framed and signed as right or wrong."""
    chosen = choose_queries(embedded)
    if not chosen:
        return element("p", "No test class has two images: there is nothing to retrieve.")
    wrong = sum(not query.right[0] for query in chosen)
    nearest_what = "other test images" if embedded.gallery is None else "images of the gallery"
    intro = element(
        "p",
        f"Each row is a query and its nearest {nearest_what}, nearest first. {wrong} of the "
        f"{len(chosen)} queries were picked because their first neighbour is wrong, so the rows "
        "are no fair sample. ✓ with a solid frame: of the query's class; ✗ with a dashed frame: of "
        "another.",
    )
    return element("div", intro, *(_row(embedded, query) for query in chosen))


def _row(embedded: Embedded, query: Query) -> Html:
    split = embedded.split
    looked_up_in = split if embedded.gallery is None else embedded.gallery[0]
    name = _class_name(split, query.row)
    cells = [
        element(
            "figure",
            thumbnail(split, query.row, f"query, class {name}"),
            element("figcaption", f"query: {name}"),
            class_="query",
        )
    ]
    for index, right in zip(query.neighbors, query.right, strict=True):
        name, word = _class_name(looked_up_in, index), "right" if right else "wrong"
        sign = element("span", "✓" if right else "✗", class_="sign")
        caption = element("figcaption", sign, f" {name}")
        image = thumbnail(looked_up_in, index, f"{word}: class {name}")
        cells.append(element("figure", image, caption, class_=word))
    return element("div", *cells, class_="row")


def _class_name(split: Split, index: int) -> str:
    return split.class_names[int(split.labels[index])]
