"""`glyphs`: characters rendered from the fonts that matplotlib ships. No download.

A class is a glyph shape: one code point, drawn from every font below that has it. Code points whose
shapes are alike in any two fonts (Latin A and Cyrillic A, o and O) would be two labels for one
shape, so only the first of them is kept. The drawings of a class are its shapes under random affine
and elastic distortion; the classes of the two splits are disjoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.splits import Dataset, Split, split_classes
from dmlap_kernels.extras import require

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "STIXGeneral",
)

# Letters and symbols. Blocks that repeat one shape in sizes, positions or with stacks of accents
# (box drawing, Braille, polytonic Greek, mathematical alphabets) are left out.
BLOCKS = (
    (0x0021, 0x007E),
    (0x00A1, 0x02AF),
    (0x0370, 0x03FF),
    (0x0400, 0x0482),
    (0x048A, 0x052F),
    (0x0531, 0x0587),
    (0x05D0, 0x05EA),
    (0x0621, 0x064A),
    (0x0671, 0x06D3),
    (0x07C0, 0x07EA),
    (0x10A0, 0x10FF),
    (0x1401, 0x169C),
    (0x2020, 0x205E),
    (0x20A0, 0x20BF),
    (0x2100, 0x214F),
    (0x2190, 0x23FF),
    (0x25A0, 0x27FF),
    (0x2900, 0x2AFF),
    (0x2C00, 0x2D7F),
    (0xA4D0, 0xA4FF),
    (0xA640, 0xA69F),
    (0xA720, 0xA7FF),
)

# Cosine of blurred shapes above which two code points count as one shape.
ALIKE = 0.95
MASTER_SIZE = 64
_INK_SIZE = 44
_BLOCK = 64

DRAWINGS = Distortion(rotation=18, shear=0.3, scale=0.25, shift=0.08, elastic=0.04)
AUGMENTATION = Distortion(rotation=10, shear=0.15, scale=0.15, shift=0.06, elastic=0.02)


def load_glyphs(
    *, image_size: int = 28, seed: int = 0, drawings: int = 20, test_share: float = 0.4
) -> Dataset:
    """Render the glyph data set.

    Args:
        image_size: side of the square images; ink is 255, ground 0.
        seed: decides the split of the classes and every drawing.
        drawings: number of drawings of each class.
        test_share: share of the classes in the test split.

    Returns:
        Dataset with one channel and over 1,000 classes in total.

    Raises:
        MissingExtra: matplotlib or pillow is not installed.
        FileNotFoundError: this matplotlib lacks one of the fonts.
    """
    masters, codes = render_masters()
    codes, masters, owners = drop_look_alikes(masters, codes)
    train, test = split_classes(len(codes), test_share, seed)
    names = tuple(f"U+{code:04X}" for code in codes.tolist())

    def draw(classes: Tensor, stream: int) -> Split:
        generator = torch.Generator(device="cpu").manual_seed(2 * seed + stream)
        labels = torch.arange(len(classes), device="cpu").repeat_interleave(drawings)
        shapes = _choose_masters(owners, classes[labels], generator)
        images = torch.cat(
            [
                DRAWINGS(masters[part].float()[:, None], generator, image_size)
                for part in shapes.split(4096)
            ]
        )
        images = images.clamp_(0, 255).round_().to(torch.uint8)
        return Split(images, labels, tuple(names[c] for c in classes.tolist()))

    division = (
        f"{test_share:.0%} of the classes, drawn at random with data_seed {seed} (--data-seed), "
        "are kept for the test"
    )
    return Dataset("glyphs", draw(train, 0), draw(test, 1), augment=AUGMENTATION, division=division)


def render_masters() -> tuple[Tensor, Tensor]:
    """Every code point of `BLOCKS` in every font that has it, centred, the longer side to scale.

    Returns:
        Images (R, 64, 64) uint8 and code points (R,) int64, ascending.
    """
    fonts = [_Font(name) for name in FONTS]
    images, codes = [], []
    for first, last in BLOCKS:
        for code in range(first, last + 1):
            shapes = [shape for font in fonts if (shape := font.render(code)) is not None]
            # A single font would make the class one rigid shape.
            if len(shapes) > 1:
                images += shapes
                codes += [code] * len(shapes)
    return torch.from_numpy(np.stack(images)), torch.tensor(codes, device="cpu")


class _Font:
    def __init__(self, name: str) -> None:
        matplotlib = require("matplotlib", purpose="data 'glyphs'")
        ft2font = require("matplotlib.ft2font", purpose="data 'glyphs'")
        image_font = require("PIL.ImageFont", purpose="data 'glyphs'")
        self._image = require("PIL.Image", purpose="data 'glyphs'")
        path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
        if not path.is_file():
            raise FileNotFoundError(
                f"data 'glyphs' draws with the fonts of matplotlib {matplotlib.__version__}, "
                f"but {path} is missing"
            )
        self._codes = frozenset(ft2font.FT2Font(str(path)).get_charmap())
        # BASIC layout: the optional raqm layout engine would join and reorder letters.
        self._font = image_font.truetype(
            str(path), _INK_SIZE, layout_engine=image_font.Layout.BASIC
        )

    def render(self, code: int) -> np.ndarray | None:
        """(64, 64) uint8, or None where the font has no ink for ``code``."""
        if code not in self._codes:
            return None
        mask = self._font.getmask(chr(code), mode="L")
        if 0 in mask.size or (box := mask.getbbox()) is None:
            return None
        glyph = self._image.frombytes("L", mask.size, bytes(mask)).crop(box)
        scale = _INK_SIZE / max(glyph.size)
        width, height = (max(1, round(side * scale)) for side in glyph.size)
        glyph = np.asarray(glyph.resize((width, height), self._image.Resampling.BILINEAR))
        canvas = np.zeros((MASTER_SIZE, MASTER_SIZE), np.uint8)
        top, left = (MASTER_SIZE - height) // 2, (MASTER_SIZE - width) // 2
        canvas[top : top + height, left : left + width] = glyph
        return canvas


def drop_look_alikes(masters: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep one code point of every group that looks alike, the lowest.

    Args:
        masters: (R, 64, 64) uint8.
        codes: (R,) int64 code point of each, ascending.

    Returns:
        The kept code points (C,), their masters (K, 64, 64) and the class 0 to C - 1 of each (K,).
    """
    points, owners = torch.unique(codes, return_inverse=True)
    shapes, rows = _blurred(masters), torch.arange(len(masters), device="cpu")
    kept: list[int] = []
    # Blocks of the lowest remaining classes against everything that remains: few, large products.
    while len(rows):
        labels, local = torch.unique_consecutive(owners[rows], return_inverse=True)
        head = local < _BLOCK
        similar = (shapes[rows[head]] @ shapes[rows].T > ALIKE).float()
        by_head = torch.zeros(_BLOCK, len(rows), device="cpu").index_add_(0, local[head], similar)
        alike = torch.zeros(_BLOCK, len(labels), device="cpu").index_add_(1, local, by_head) > 0
        dropped = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
        for i in range(min(_BLOCK, len(labels))):
            if not dropped[i]:
                kept.append(int(labels[i]))
                dropped |= alike[i]
        dropped[:_BLOCK] = True
        rows = rows[~dropped[local]]
    classes = torch.tensor(kept, device="cpu")
    new_label = torch.full((len(points),), -1, device="cpu")
    new_label[classes] = torch.arange(len(classes), device="cpu")
    owners = new_label[owners]
    return points[classes], masters[owners >= 0], owners[owners >= 0]


def _blurred(masters: Tensor) -> Tensor:
    """Unit vectors (R, 256): 16 x 16 means, blurred so that stroke edges do not decide."""
    small = F.avg_pool2d(masters[:, None].float(), MASTER_SIZE // 16)
    kernel = torch.tensor([0.25, 0.5, 0.25], device="cpu")
    small = F.conv2d(small, (kernel[:, None] * kernel)[None, None], padding=1)
    return F.normalize(small.flatten(1))


def _choose_masters(owners: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """A random master (N,) of each of ``classes`` (N,)."""
    counts = torch.bincount(owners)
    starts = counts.cumsum(0) - counts
    draw = torch.rand(len(classes), generator=generator, dtype=torch.float64, device="cpu")
    return starts[classes] + (draw * counts[classes]).long()
