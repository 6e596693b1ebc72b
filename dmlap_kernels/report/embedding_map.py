"""A map of the test embeddings in two dimensions."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmlap_kernels.extras import require
from dmlap_kernels.report.markup import Html, element, join, picture
from dmlap_kernels.report.runs import Embedded
from dmlap_kernels.report.thumbnails import pixels

MOST_SAMPLES = 2000
MOST_CLASSES = 40
_COMPONENTS = 50
_PURPOSE = "dmlap report"
_THUMBNAIL = 32
_BESIDE = (18, 28)  # points, of the middle of an image from that of its class


class EmbeddingMap(NamedTuple):
    """Rows (n,) of the test split and their positions (n, 2)."""

    rows: Tensor
    positions: Any


def project(
    embedded: Embedded, samples: int = MOST_SAMPLES, classes: int = MOST_CLASSES
) -> EmbeddingMap:
    """Positions of at most ``samples`` images of at most ``classes`` classes: PCA, then t-SNE.

    What is left out is drawn at random, the same from call to call.
    """
    decomposition = require("sklearn.decomposition", purpose=_PURPOSE)
    manifold = require("sklearn.manifold", purpose=_PURPOSE)
    random = torch.Generator(device="cpu").manual_seed(0)
    split = embedded.split
    kept = torch.randperm(split.num_classes, generator=random, device="cpu")[:classes]
    rows = torch.isin(split.labels, kept).nonzero().flatten()
    rows = rows[torch.randperm(len(rows), generator=random, device="cpu")[:samples]].sort().values
    x = embedded.comparable()[rows]
    if x.shape[1] == 1:
        x = torch.cat([x, torch.zeros_like(x)], dim=1)
    pca = decomposition.PCA(min(_COMPONENTS, *x.shape), random_state=0)
    with np.errstate(invalid="ignore"):  # the share of a variance of zero, which nobody asks for
        components = pca.fit_transform(x.numpy())
    if len(rows) < 4:
        # Too few neighbours for t-SNE.
        return EmbeddingMap(rows, components[:, :2])
    # Embeddings that all are the same have no principal axes to begin with.
    init = "pca" if components[:, 0].std() > 0 and components.shape[1] > 1 else "random"
    tsne = manifold.TSNE(
        perplexity=min(30.0, (len(rows) - 1) / 3), init=init, random_state=0, n_jobs=1
    )
    return EmbeddingMap(rows, tsne.fit_transform(components))


def render_map(embedded: Embedded) -> Html:
    """Coloured points, and one image of every class at its middle."""
    found = project(embedded)
    split = embedded.split
    shown = len(torch.unique(split.labels[found.rows]))
    text = (
        f"{len(found.rows):,} of {len(split):,} test images, of {shown} of {split.num_classes} "
        "classes: principal components, then t-SNE, which keeps neighbourhoods and no distances. A "
        "colour and an image in a frame of that colour stand for a class."
    )
    alt = f"map of {len(found.rows)} test embeddings of {shown} classes"
    return join((element("p", text), picture(_draw(embedded, found), "png", alt, class_="plot")))


def _draw(embedded: Embedded, found: EmbeddingMap) -> bytes:
    figures = require("matplotlib.figure", purpose=_PURPOSE)
    matplotlib = require("matplotlib", purpose=_PURPOSE)
    boxes = require("matplotlib.offsetbox", purpose=_PURPOSE)
    maps = [matplotlib.colormaps[name] for name in ("tab20", "tab20b")]
    colors = [color for colormap in maps for color in colormap.colors]
    figure = figures.Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.margins(0.06)
    labels = embedded.split.labels[found.rows].numpy()
    for number, label in enumerate(sorted(set(labels.tolist()))):
        members = (labels == label).nonzero()[0]
        color = colors[number % len(colors)]
        axes.scatter(*found.positions[members, :2].T, s=22, color=[color], linewidths=0, zorder=2)
        middle = members[_medoid(found.positions[members])]
        image = pixels(embedded.split, int(found.rows[middle]))
        shown = boxes.OffsetImage(image, zoom=_THUMBNAIL / max(image.shape[:2]), cmap="gray")
        # Beside the points and tied to them: the heap of a class is often smaller than its image.
        axes.add_artist(
            boxes.AnnotationBbox(
                shown,
                found.positions[middle, :2],
                xybox=_BESIDE,
                boxcoords="offset points",
                pad=0.1,
                bboxprops={"edgecolor": color, "linewidth": 2},
                arrowprops={"arrowstyle": "-", "color": color},
                zorder=3,
            )
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _medoid(positions: Any) -> int:
    """The point nearest to the median of a class, inside its largest heap."""
    offsets = positions - np.median(positions, axis=0)
    return int((offsets**2).sum(1).argmin())
