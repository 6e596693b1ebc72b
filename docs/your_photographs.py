"""Makes the folder and the pictures of ``docs/your-photographs.md``.

    python docs/your_photographs.py FOLDER       # pictures of rendered characters, a folder a class
    python docs/your_photographs.py --draw RUN   # docs/pictures/your-photographs-*.png, of its run

RUN is what the page's ``dmlap train`` and ``dmlap embed`` have left behind.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from dmlap_kernels import nearest
from dmlap_kernels.data.glyphs import load_glyphs

PICTURES = Path(__file__).parent / "pictures"
CLASSES, IMAGES, SIDE = 60, 12, 48
QUERIES, NEIGHBOURS = 6, 5


def make(folder: Path) -> None:
    """``CLASSES`` class folders of ``IMAGES`` PNG files."""
    split = load_glyphs(image_size=SIDE, drawings=IMAGES).train
    for label in range(CLASSES):
        below = folder / f"sign-{label:02}"
        below.mkdir(parents=True)
        rows = (split.labels == label).nonzero().flatten()
        for number, pixels in enumerate((255 - split.stored(rows)[:, 0]).numpy(), 1):
            Image.fromarray(pixels).save(below / f"{number}.png")


def draw(run: Path) -> None:
    """The curves of ``run``, and test images with their nearest neighbours."""
    shutil.copy(run / "curves.png", PICTURES / "your-photographs-curves.png")
    found = np.load(run / "test.npz")
    rows = torch.from_numpy(found["embeddings"])
    _, indices = nearest(rows, None, NEIGHBOURS)
    figure = Figure(figsize=(NEIGHBOURS + 1, QUERIES), layout="constrained")
    axes = figure.subplots(QUERIES, NEIGHBOURS + 1)
    for line, query in zip(axes, range(0, len(rows), len(rows) // QUERIES), strict=False):
        for column, row in enumerate([query, *indices[query].tolist()]):
            cell = line[column]
            cell.imshow(Image.open(Path("mine", found["ids"][row])), cmap="gray", vmin=0, vmax=255)
            cell.set(xticks=[], yticks=[])
            right = found["labels"][row] == found["labels"][query]
            colour = "#222222" if not column else "#1f6fb4" if right else "#d1601f"
            for side in cell.spines.values():
                side.set(color=colour, linewidth=3)
    axes[0, 0].set_title("image", fontsize=9)
    axes[0, 1].set_title("nearest", fontsize=9)
    figure.savefig(PICTURES / "your-photographs-neighbours.png", dpi=60)


if __name__ == "__main__":
    if sys.argv[1] == "--draw":
        draw(Path(sys.argv[2]))
    else:
        make(Path(sys.argv[1]))
