"""`digits`: the scans of handwritten digits bundled with scikit-learn (1,797 of 8 x 8 pixels).

Real, small and quick, to try things on. Five training classes are too few to learn from: Recall@1
on the other five starts high and falls, with either method.
"""

from __future__ import annotations

import torch

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.splits import Dataset, Split
from dmlap_kernels.extras import require

AUGMENTATION = Distortion(rotation=10, shear=0.1, scale=0.1, shift=0.06, elastic=0.0)


def load_digits() -> Dataset:
    """Digits 0 to 4 for training, 5 to 9 for testing; (1, 8, 8) images, ink 255.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    source = require("sklearn.datasets", purpose="data 'digits'").load_digits()
    images = torch.from_numpy(source.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    digits = Split(
        images,
        torch.from_numpy(source.target).long(),
        tuple(str(digit) for digit in range(10)),
    )
    return Dataset(
        "digits",
        digits.select(torch.arange(5, device="cpu")),
        digits.select(torch.arange(5, 10, device="cpu")),
        augment=AUGMENTATION,
    )
