"""The parts of a run, made as its configuration says and tried in small."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from dmlap_kernels.data import Dataset, Split
from dmlap_kernels.trainer.batches import ClassBatchSampler
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.distributed import RankGroup
from dmlap_kernels.trainer.loading import BatchImages, BatchLoader, default_workers
from dmlap_kernels.trainer.model import build_encoder
from dmlap_kernels.trainer.objective import AlternatingObjective
from dmlap_kernels.trainer.optimization import (
    OptimizerFactory,
    build_optimizer,
    decays_weights,
    freeze,
    parameter_groups,
)
from dmlap_kernels.trainer.rehearsal import (
    check_optimizer,
    has_modes,
    memory_advice,
    same_randomness,
    try_objective,
    try_optimizer,
)
from dmlap_kernels.trainer.representatives import RepresentativeSampler
from dmlap_kernels.trainer.weights import Matched, load_weights_file


def encoder_of(
    config: TrainConfig, train: Split, given: nn.Module | None, device: torch.device
) -> tuple[nn.Module, Matched | None]:
    """The encoder, and what of it the file of weights matched."""
    matched = None
    encoder = given
    if encoder is None:
        encoder = build_encoder(config, tuple(train.images.shape[1:]))
        if config.weights is not None:
            matched = load_weights_file(encoder, config.weights)
    freeze(encoder, config.frozen)
    encoder = encoder.to(device)
    if config.channels_last:
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder, matched


def objective_of(config: TrainConfig, train: Split, device: torch.device) -> AlternatingObjective:
    return AlternatingObjective(
        config.loss,
        config.loss_options,
        in_batch_weight=config.in_batch_weight,
        side=config.representatives,
        between_weight=config.between_weight,
        num_classes=train.num_classes,
        embedding_dim=config.embedding_dim,
    ).to(device)


def sampler_of(config: TrainConfig, train: Split) -> ClassBatchSampler:
    assert config.classes_per_batch is not None
    return ClassBatchSampler(
        train.labels,
        config.classes_per_batch,
        config.samples_per_class,
        config.seed,
        hard_share=config.hard_share if config.mines else 0.0,
        hard_warmup=config.hard_warmup,
    )


def loader_of(
    config: TrainConfig, data: Dataset, ranks: RankGroup, workers: int | None, device: torch.device
) -> BatchLoader:
    images = BatchImages.of(config, data.train, data.augment, ranks.place)
    return BatchLoader(images, default_workers(data.train) if workers is None else workers, device)


def rehearse(
    config: TrainConfig,
    train: Split,
    sampler: ClassBatchSampler,
    objective: AlternatingObjective,
    embeddings: Tensor,
    ranks: RankGroup,
) -> None:
    """Try the objective on the labels of the first batch; ``embeddings`` are two of the encoder."""
    pinned = None
    if config.is_dmlap:
        amount = config.representatives_per_class
        pinned = RepresentativeSampler(train.labels, config.seed, amount).draw(0)
    batch = sampler.batch(0, pinned)
    ranks.check_batch(len(batch.labels), batch.representatives)
    device = embeddings.device
    with same_randomness(device), memory_advice(config, device):
        try_objective(objective, config, batch, embeddings)


def optimizer_of(
    config: TrainConfig,
    encoder: nn.Module,
    objective: nn.Module,
    name: str,
    factory: OptimizerFactory | None,
    device: torch.device,
) -> torch.optim.Optimizer:
    """Of what is learned: that of the configuration, or what ``factory`` returns.

    Raises:
        ValueError, TypeError: the encoder, called ``name``, has nothing to learn; or the optimizer
            does not suit it.
    """
    parameters, own = learned(encoder), learned(objective)
    if not parameters:
        raise ValueError(
            f"encoder {name} must have a parameter that requires grad, but it has none to learn"
        )
    groups = parameter_groups(
        encoder,
        own,
        config.loss_rate,
        backbone_rate=config.backbone_rate,
        decays=factory is None and decays_weights(config.optimizer, config.optimizer_options),
    )
    if factory is None:
        with same_randomness(device):
            try_optimizer(config, device)
        named = config.optimizer, groups, config.learning_rate, config.optimizer_options
        return build_optimizer(*named)
    optimizer = factory(groups)
    check_optimizer(optimizer, [*parameters, *own])
    return optimizer


def learned(module: nn.Module) -> list[nn.Parameter]:
    """Its parameters that require a gradient."""
    return [p for p in module.parameters() if p.requires_grad]


def warn_of_evaluation_mode(encoder: nn.Module, stacklevel: int) -> None:
    """Where it makes a difference to training."""
    if not encoder.training and any(map(has_modes, encoder.modules())):
        warnings.warn(
            "the encoder is in evaluation mode and is trained so, without dropout and with "
            "batch normalisation frozen; call encoder.train() before if that is not meant",
            stacklevel=stacklevel + 1,
        )
