"""Draws ``docs/pictures/*.svg``: what each loss pulls and pushes, and alternating projections.

    python docs/pictures.py          # writes the files, which are committed

An arrow is the negative gradient of the loss at a point, as the library computes it: the way that a
step of gradient descent moves the point. Within a panel the longest arrow has a fixed length and
the others are to its scale; arrows below a fiftieth of it are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import dmlap_kernels as dk

FOLDER = Path(__file__).parent / "pictures"
SIDE, UNIT, LONGEST, SHORTEST = 230, 72, 0.5, 0.02
LEGEND, EDGE = 34, 6
COLOURS = {"anchor": "#222222", "positive": "#1f6fb4", "negative": "#d1601f", "other": "#8a8a8a"}


class Panel(NamedTuple):
    """One loss at a few points of the plane, in units of their distance.

    ``rows`` (N, 2) with a kind each; ``forces`` (N, 2), the negative gradient; ``circles``: radius
    and what it stands for, around the first row.
    """

    title: str
    rows: Tensor
    kinds: list[str]
    forces: Tensor
    circles: tuple[tuple[float, str], ...] = ()
    sphere: bool = False


ONE = ["anchor"] + ["positive"] * 2 + ["negative"] * 4
PLANE = torch.tensor(
    [(0, 0), (-0.75, 0.75), (0.35, 0.45), (0.75, -0.1), (0.1, -0.85), (-1.25, -0.2), (1.2, -0.95)],
    dtype=torch.float64,
)


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * (math.pi / 180)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


CIRCLE = on_circle(90, 35, 170, 62, 128, 225, 310)


def of_anchor(
    title: str,
    loss: Callable[..., Tensor],
    rows: Tensor,
    circles: tuple[tuple[float, str], ...] = (),
    **options: object,
) -> Panel:
    """The first row is the only anchor, the others are its references."""
    x = rows[:1].clone().requires_grad_()
    y = rows[1:].clone().requires_grad_()
    labels = torch.tensor([0 if kind == "positive" else 1 for kind in ONE[1:]])
    value = loss(x, torch.tensor([0]), y, labels, backend="torch", **options)
    value.backward()
    forces = -torch.cat((x.grad, y.grad))
    return Panel(title, rows, ONE, forces, circles, sphere=rows is CIRCLE)


def of_pair(title: str, loss: Callable[..., Tensor], rows: Tensor, **options: object) -> Panel:
    """A batch of one positive pair, the first two rows, among rows of other classes."""
    x = rows[[0, 1, 3, 4, 5, 6]].clone()
    whole = x.clone().requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 3, 4])
    loss(whole, labels, backend="torch", **options).backward()
    kinds = ["anchor", "positive"] + ["negative"] * 4
    return Panel(title, x, kinds, -whole.grad, sphere=rows is CIRCLE)


def of_proxies(
    title: str,
    loss: Callable[..., Tensor],
    degrees: tuple[float, ...],
    proxies: tuple[float, ...],
    classes: tuple[int, ...],
    **options: object,
) -> Panel:
    """Embeddings of class 0 at ``degrees``, proxies at ``proxies``; arrows at both."""
    x = on_circle(*degrees).requires_grad_()
    y = on_circle(*proxies).requires_grad_()
    labels = torch.zeros(len(degrees), dtype=torch.int64)
    loss(x, labels, y, torch.tensor(classes), backend="torch", **options).backward()
    kinds = ["anchor"] * len(degrees)
    kinds += ["own proxy" if c == 0 else "other proxy" for c in classes]
    rows = torch.cat((x, y)).detach()
    return Panel(title, rows, kinds, -torch.cat((x.grad, y.grad)), sphere=True)


def figures() -> dict[str, list[Panel]]:
    """The panels of each file, by its name."""
    triplet = dk.fused_triplet_loss
    return {
        "triplets": [
            of_anchor("hard", triplet, PLANE, margin=0.6, mining="hard"),
            of_anchor("semihard", triplet, PLANE, margin=0.6, mining="semihard"),
            of_anchor("all", triplet, PLANE, margin=0.6, mining="all"),
            of_anchor(
                "distance_weighted", triplet, CIRCLE, margin=0.6, mining="distance_weighted", seed=2
            ),
        ],
        "pairs": [
            of_anchor(
                "contrastive",
                dk.fused_contrastive_loss,
                PLANE,
                ((1.0, "neg_margin"),),
                normalize=False,
            ),
            of_anchor(
                "contrastive, squared",
                dk.fused_contrastive_loss,
                PLANE,
                ((1.0, "neg_margin"),),
                normalize=False,
                squared=True,
            ),
            of_anchor(
                "margin",
                dk.fused_margin_loss,
                PLANE,
                ((0.6, "beta - margin"), (1.0, "beta + margin")),
                beta=0.8,
                margin=0.2,
                normalize=False,
            ),
        ],
        "log-sums": [
            of_anchor(
                "multi-similarity", dk.fused_multi_similarity_loss, CIRCLE, alpha=2.0, beta=10.0
            ),
            of_anchor("circle", dk.fused_circle_loss, CIRCLE, gamma=8.0),
            of_anchor(
                "lifted structure, generalized",
                dk.fused_lifted_structure_loss,
                PLANE,
                form="generalized",
                normalize=False,
            ),
            of_pair(
                "lifted structure, original",
                dk.fused_lifted_structure_loss,
                PLANE,
                form="original",
                normalize=False,
            ),
            of_pair("angular", dk.fused_angular_loss, CIRCLE, alpha=40.0),
        ],
        "softmax": [
            of_anchor("N-pairs", dk.fused_n_pairs_loss, CIRCLE),
            of_anchor("NT-Xent", dk.fused_nt_xent_loss, CIRCLE, temperature=0.2),
            of_anchor("SupCon", dk.fused_sup_con_loss, CIRCLE, temperature=0.2),
        ],
        "proxies": [
            of_proxies(
                "proxy-NCA", dk.fused_proxy_nca_loss, (90,), (150, 60, 200, 320), (0, 1, 2, 3)
            ),
            of_proxies(
                "proxy-anchor",
                dk.fused_proxy_anchor_loss,
                (75, 115, 240),
                (150, 50),
                (0, 1),
                alpha=4.0,
            ),
            of_proxies(
                "SoftTriple",
                dk.fused_soft_triple_loss,
                (90,),
                (150, 215, 50, 330),
                (0, 0, 1, 1),
                la=4.0,
            ),
        ],
    }


def marker(kind: str, x: float, y: float) -> str:
    """A disc, a square for negatives, a diamond for proxies."""
    names = {"own proxy": "positive", "other proxy": "negative"}
    colour = COLOURS[names.get(kind, kind)]
    if kind == "negative":
        return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{colour}"/>'
    if kind in names:
        corners = f"{x:.1f},{y - 8:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 8:.1f} {x - 7:.1f},{y:.1f}"
        return f'<polygon points="{corners}" fill="{colour}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>'


def arrow(x: float, y: float, dx: float, dy: float) -> str:
    """From the edge of the marker at (x, y), a head of 6 at its end."""
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    x, y = x + EDGE * ux, y + EDGE * uy
    tip, back = (x + dx, y + dy), (x + dx - 6 * ux, y + dy - 6 * uy)
    head = (
        f"{tip[0]:.1f},{tip[1]:.1f} {back[0] - 3.5 * uy:.1f},{back[1] + 3.5 * ux:.1f} "
        f"{back[0] + 3.5 * uy:.1f},{back[1] - 3.5 * ux:.1f}"
    )
    line = f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{back[0]:.1f}" y2="{back[1]:.1f}"'
    return f'{line} stroke="#222222" stroke-width="1.6"/><polygon points="{head}" fill="#222222"/>'


def drawn(panel: Panel, left: float) -> list[str]:
    """A panel as elements, its left edge at ``left``."""
    centre = left + SIDE / 2, 20 + SIDE / 2
    places = [(centre[0] + UNIT * x, centre[1] - UNIT * y) for x, y in panel.rows.tolist()]
    parts = [f'<text x="{centre[0]:.1f}" y="16" class="title">{panel.title}</text>']
    if panel.sphere:
        parts.append(
            f'<circle cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="{UNIT}" class="guide"/>'
        )
    for radius, name in panel.circles:
        x, y = places[0]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{UNIT * radius:.1f}" class="guide"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{y - UNIT * radius - 3:.1f}" class="note">{name}</text>'
        )
    kinds = zip(panel.kinds, places, strict=True)
    parts += [marker(kind, x, y) for kind, (x, y) in kinds]
    sizes = panel.forces.norm(dim=1)
    scale = UNIT * LONGEST / sizes.max().item()
    for (x, y), force, size in zip(places, panel.forces.tolist(), sizes.tolist(), strict=True):
        if size > SHORTEST * sizes.max().item():
            parts.append(arrow(x, y, scale * force[0], -scale * force[1]))
    return parts


def legend(kinds: set[str], top: float) -> list[str]:
    parts, x = [], 14.0
    for kind in ("anchor", "positive", "negative", "own proxy", "other proxy"):
        if kind in kinds:
            word = "embedding" if kind == "anchor" and "own proxy" in kinds else kind
            parts.append(marker(kind, x, top + 14))
            parts.append(f'<text x="{x + 12:.1f}" y="{top + 18:.1f}" class="key">{word}</text>')
            x += 34 + 7 * len(word)
    parts.append(arrow(x, top + 14, 26, 0))
    parts.append(f'<text x="{x + 42:.1f}" y="{top + 18:.1f}" class="key">a gradient step</text>')
    return parts


def page(width: int, height: int, parts: list[str]) -> str:
    """A whole file."""
    style = (
        "text{font-family:sans-serif;fill:#222}.title{font-size:13px;text-anchor:middle}"
        ".note{font-size:10px;text-anchor:middle;fill:#777}.key{font-size:12px}"
        ".guide{fill:none;stroke:#999;stroke-dasharray:4 3}"
        ".set{fill:#1f6fb4;fill-opacity:0.15;stroke:#1f6fb4}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
    )
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>"]) + "\n"


def projections() -> str:
    """Weights that are projected onto one relaxed set after the other, three discs."""
    discs = [((235.0, 150.0), 105.0), ((345.0, 110.0), 95.0), ((310.0, 215.0), 95.0)]
    places = [(60.0, 40.0)]
    for centre, radius in [*discs, discs[0]]:
        (x, y), (cx, cy) = places[-1], centre
        away = math.hypot(x - cx, y - cy)
        share = min(radius / away, 1.0)
        places.append((cx + share * (x - cx), cy + share * (y - cy)))
    parts = [f'<circle cx="{c[0]}" cy="{c[1]}" r="{r}" class="set"/>' for c, r in discs]
    for name, x, y in (("S1", 150.0, 190.0), ("S2", 420.0, 90.0), ("S3", 330.0, 300.0)):
        parts.append(f'<text x="{x}" y="{y}" class="title">{name}</text>')
    parts.append('<text x="296.0" y="170.0" class="title">feasible set</text>')
    for (x, y), (to_x, to_y) in itertools.pairwise(places):
        length = math.hypot(to_x - x, to_y - y)
        if length > 0:  # from the edge of one point to that of the next
            share = 1 - 2 * EDGE / length
            parts.append(arrow(x, y, share * (to_x - x), share * (to_y - y)))
    for i, (x, y) in enumerate(dict.fromkeys(places)):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#222222"/>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y - 6:.1f}" class="key">θ{i}</text>')
    return page(460, 320, parts)


def svg(panels: list[Panel]) -> str:
    """The whole file: at most three panels a row, a legend below."""
    per_row = 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // per_row)
    width, height = SIDE * min(per_row, len(panels)), (SIDE + 24) * rows + LEGEND
    parts = []
    for i, panel in enumerate(panels):
        down = (SIDE + 24) * (i // per_row)
        parts += [
            f'<g transform="translate(0,{down})">',
            *drawn(panel, SIDE * (i % per_row)),
            "</g>",
        ]
    parts += legend({kind for panel in panels for kind in panel.kinds}, height - LEGEND)
    return page(width, height, parts)


def pictures() -> dict[str, str]:
    """The content of each file, by its name."""
    return {name: svg(panels) for name, panels in figures().items()} | {"dmlap": projections()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, content in pictures().items():
        (FOLDER / f"{name}.svg").write_text(content)


if __name__ == "__main__":
    main()
