"""What to say when a run cannot go on: numbers that are not finite, memory that is used up."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.data import Split
from dmlap_kernels.trainer.batches import Batch


class NonFiniteLoss(RuntimeError):
    """The loss of a step is infinite or not a number.

    Attributes:
        step: the step, from 1.
        indices: (B,) int64, the batch as indices into the training split.
        sample: index of the offending sample in the training split.
    """

    def __init__(self, message: str, step: int, indices: Tensor, sample: int) -> None:
        super().__init__(message)
        self.step = step
        self.indices = indices
        self.sample = sample


class NonFiniteEmbeddings(RuntimeError):
    """Embeddings to be evaluated are infinite or not numbers.

    Attributes:
        sample: index of the first such image in its split.
    """

    def __init__(self, message: str, sample: int) -> None:
        super().__init__(message)
        self.sample = sample


class OutOfMemory(RuntimeError):
    """A step or an evaluation took more memory than there is; the message says what helps."""


_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python, NumPy or torch, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_WORDS)


def require_finite(embeddings: Tensor, split: Split) -> None:
    """Raise NonFiniteEmbeddings, naming the first image of ``split`` to blame."""
    bad = (~embeddings.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        sample = int(bad[0])
        name = split.class_names[int(split.labels[sample])]
        raise NonFiniteEmbeddings(
            f"{len(bad)} of {len(embeddings)} embeddings to evaluate are not finite, the first "
            f"that of image {sample} (class {name!r})",
            sample,
        )


def magnitudes(embeddings: Tensor) -> Tensor:
    """(B,), the largest absolute value of each row; infinite or nan if one of them is."""
    return embeddings.detach().abs().amax(1)


def diagnose(
    value: float, step: int, batch: Batch, images: Tensor, largest: Tensor, split: Split
) -> NonFiniteLoss:
    """Find the sample to blame: a bad image, else a bad embedding, else the largest one.

    Args:
        value: the loss.
        step: from 1.
        batch: of the step.
        images: (B, channels, height, width) of it.
        largest: (B,) `magnitudes` of its embeddings.
        split: the training split.
    """
    bad_images = ~images.flatten(1).isfinite().all(1)
    bad_rows = ~largest.isfinite()
    if bool(bad_images.any()):
        row, why = int(bad_images.nonzero()[0]), "its image holds values that are not finite"
    elif bool(bad_rows.all()):
        row, why = 0, "its embedding, like every other of the batch, is not finite"
    elif bool(bad_rows.any()):
        row, why = int(bad_rows.nonzero()[0]), "its embedding is not finite"
    else:
        row, why = int(largest.argmax()), "its embedding is the largest"
    sample = int(batch.indices[row])
    name = split.class_names[int(batch.labels[row])]
    listed = ", ".join(map(str, batch.indices.tolist()))
    message = (
        f"the loss is {value} at step {step}: sample {sample} (class {name!r}, row {row} of the "
        f"batch): {why}; training samples of the batch: {listed}"
    )
    return NonFiniteLoss(message, step, batch.indices, sample)
