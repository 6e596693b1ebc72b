"""The encoder of a run: made from its configuration, or read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels.data import Dataset, load_data, parse_source
from dmlap_kernels.encoders import WIDTHS, ConvEncoder, TimmEncoder
from dmlap_kernels.extras import require
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.checkpoint import CheckpointError, load_checkpoint, of_prefix
from dmlap_kernels.trainer.config import TrainConfig, parse_widths
from dmlap_kernels.trainer.embedding import device_of, evaluate
from dmlap_kernels.trainer.nested_state import unpack


def build_encoder(
    config: TrainConfig, image_shape: tuple[int, ...], *, pretrained: bool | None = None
) -> nn.Module:
    """The encoder that a configuration names, for images of shape (channels, height, width).

    ``pretrained`` overrides the configuration's, for an encoder that is about to be filled.
    """
    channels, height, width = image_shape
    kind, _, name = config.encoder.partition(":")
    # Made on the CPU, whatever PyTorch's default device is: equal seeds give equal weights.
    with torch.device("cpu"):
        if kind == "conv":
            widths = parse_widths(name) or WIDTHS
            return ConvEncoder((channels, height, width), config.embedding_dim, widths=widths)
        return TimmEncoder(
            name,
            config.embedding_dim,
            pretrained=config.pretrained if pretrained is None else pretrained,
            freeze_batch_norm=config.freeze_batch_norm,
        )


def load_encoder(folder: str | Path, encoder: nn.Module | None = None) -> nn.Module:
    """The encoder of the run in ``folder`` at its last checkpoint, on the CPU, ready to embed.

    Args:
        folder: what ``out`` of the trainer was.
        encoder: the module to fill with the weights, if the run was given one of its own.

    Raises:
        CheckpointError: no readable checkpoint, or the weights do not fit.
    """
    tensors, state = load_checkpoint(Path(folder))
    if encoder is None:
        config = TrainConfig.from_dict(state["config"])
        encoder = build_encoder(config, tuple(state["image_shape"]), pretrained=False)
    load_weights(encoder, tensors, state, folder)
    return encoder.eval()


def evaluate_run(
    folder: str | Path,
    *,
    data: str | None = None,
    ks: Sequence[int] | None = None,
    device: str = defaults.DEVICE,
    clustering: bool = False,
) -> dict[str, float]:
    """`retrieval_metrics` of the run in ``folder`` on its test classes.

    Args:
        folder: what ``out`` of the trainer was; the run was given no encoder of its own.
        data: another source, whose test classes are used at the image size of the run.
        ks: values of K of Recall@K; default: those customary on the data.
        device: a torch device or ``"auto"``.
        clustering: also NMI, F1 and AMI.

    Raises:
        CheckpointError: no readable checkpoint.
        MissingExtra: ``clustering`` without faiss.
        NonFiniteEmbeddings: the weights have diverged.
        ValueError: the images do not fit the encoder.
    """
    # Before the data are read and embedded.
    where = resolve_device(device)
    if ks is not None and (not ks or any(k < 1 for k in ks)):
        raise ValueError(f"ks must be one or more positive integers, got {tuple(ks)!r}")
    if clustering:
        require("faiss", purpose="clustering", extra="faiss")
        require("sklearn.metrics", purpose="clustering")
    config, loaded = data_of_run(folder, data)
    split = loaded.test
    encoder = load_encoder(folder).to(where)
    return evaluate(
        encoder,
        split,
        gallery=loaded.gallery,
        ks=loaded.ks if ks is None else ks,
        loss=config.loss,
        loss_options=config.loss_options,
        clustering=clustering,
        chunk_size=config.chunk_size,
    )


def data_of_run(folder: str | Path, data: str | None = None) -> tuple[TrainConfig, Dataset]:
    """The configuration of the run in ``folder``, and its data or those of another source.

    Raises:
        CheckpointError: no readable checkpoint.
        ValueError: the images do not fit the encoder.
    """
    _, state = load_checkpoint(Path(folder))
    config = TrainConfig.from_dict(state["config"])
    shape = tuple(state["image_shape"])
    size = config.image_size if data is None else shape[-1]
    source = data or config.data
    loaded = load_data(
        source,
        image_size=size,
        seed=config.data_seed,
        drop_unreadable=config.drop_unreadable and parse_source(source)[0] == "folder",
    )
    if tuple(loaded.test.images.shape[1:]) != shape:
        raise ValueError(
            f"data must have images of shape {shape}, as the run in {folder} had, got "
            f"{tuple(loaded.test.images.shape[1:])}"
        )
    return config, loaded


def load_weights(
    encoder: nn.Module, tensors: dict[str, Tensor], state: dict[str, Any], folder: object
) -> None:
    """Put the weights of a checkpoint into ``encoder``; CheckpointError if they do not fit."""
    device = device_of(encoder)
    # What modules keep beside their tensors, by get_extra_state.
    extra = unpack(state.get("model_extra", {"dict": []}), of_prefix("extra", tensors), device)
    try:
        encoder.load_state_dict({**of_prefix("model", tensors), **extra})
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit the encoder: {error}") from error


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is cuda where there is one, else cpu.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Computes and is read back, which a device such as meta cannot do.
        torch.zeros(1, device=device).add_(1).item()
    # Whatever the runtime of the device, or the import of its support, runs into.
    except Exception as error:
        # The first sentence: some go on with a list of all that torch knows.
        reason = str(error).partition("\n")[0].partition(". ")[0][:200]
        raise ValueError(
            f"device must be auto or a device of this machine, got {name!r}: {reason}"
        ) from error
    return device
