"""Queries of the test classes with their nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.mining import nearest
from dmlap_kernels.report.markup import Html, element
from dmlap_kernels.report.runs import Embedded
from dmlap_kernels.report.thumbnails import thumbnail

QUERIES = 12
NEIGHBORS = 8


class Query(NamedTuple):
    """A query, its neighbours by rank, and whether each is of its class."""

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
    k = min(neighbors, len(labels) - 1)
    if k < 1:
        return []
    found = nearest(embedded.embeddings, k=k, **embedded.options).indices  # [N, k]
    right = labels[found] == labels[:, None]
    valid = torch.bincount(labels)[labels] > 1
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
    positions = (torch.arange(count) * len(rows)) // count
    return rows[positions].tolist()


def render_gallery(embedded: Embedded) -> Html:
    """Queries, one a row, each neighbour framed and signed as right or wrong."""
    chosen = choose_queries(embedded)
    if not chosen:
        return element("p", "No test class has two images: there is nothing to retrieve.")
    wrong = sum(not query.right[0] for query in chosen)
    intro = element(
        "p",
        f"Each row is a query and its nearest other test images, nearest first. {wrong} of the "
        f"{len(chosen)} queries were picked because their first neighbour is wrong, so the rows "
        "are no fair sample. ✓ with a solid frame: of the query's class; ✗ with a dashed frame: of "
        "another.",
    )
    return element("div", intro, *(_row(embedded, query) for query in chosen))


def _row(embedded: Embedded, query: Query) -> Html:
    split = embedded.split
    name = _class_name(embedded, query.row)
    cells = [
        element(
            "figure",
            thumbnail(split, query.row, f"query, class {name}"),
            element("figcaption", f"query: {name}"),
            class_="query",
        )
    ]
    for index, right in zip(query.neighbors, query.right, strict=True):
        name, word = _class_name(embedded, index), "right" if right else "wrong"
        sign = element("span", "✓" if right else "✗", class_="sign")
        caption = element("figcaption", sign, f" {name}")
        image = thumbnail(split, index, f"{word}: class {name}")
        cells.append(element("figure", image, caption, class_=word))
    return element("div", *cells, class_="row")


def _class_name(embedded: Embedded, index: int) -> str:
    return embedded.split.class_names[int(embedded.split.labels[index])]
