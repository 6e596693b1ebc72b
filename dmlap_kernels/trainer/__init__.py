"""Training by alternating projections onto feasible sets (DMLAP, arXiv 1907.07585).

    from dmlap_kernels.trainer import TrainConfig, Trainer

    trainer = Trainer(TrainConfig(data="glyphs", loss="triplet"), out="runs/first")
    print(trainer.run()["recall@1"])

The parts serve other training loops as well: `ClassBatchSampler` and `RepresentativeSampler` say
which samples make a batch, `AlternatingObjective` what it costs, `Projection` adds the proximal
gradient, `PinnedBatchSampler` feeds a data loader, and `GradientCache` embeds batches larger than
memory.
"""

from __future__ import annotations

from dmlap_kernels.trainer.batch_sampler import PinnedBatchSampler
from dmlap_kernels.trainer.batches import Batch, ClassBatchSampler
from dmlap_kernels.trainer.checkpoint import CheckpointError
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.diagnosis import NonFiniteEmbeddings, NonFiniteLoss, OutOfMemory
from dmlap_kernels.trainer.embedding import embed, evaluate, evaluate_pixels
from dmlap_kernels.trainer.embedding_files import embed_run, write_embeddings
from dmlap_kernels.trainer.export import export_run
from dmlap_kernels.trainer.gradient_cache import GradientCache
from dmlap_kernels.trainer.log import Observer
from dmlap_kernels.trainer.loop import Interrupted, Trainer
from dmlap_kernels.trainer.model import evaluate_run, load_encoder
from dmlap_kernels.trainer.objective import AlternatingObjective
from dmlap_kernels.trainer.projection import Projection
from dmlap_kernels.trainer.representatives import RepresentativeSampler

__all__ = [
    "AlternatingObjective",
    "Batch",
    "CheckpointError",
    "ClassBatchSampler",
    "GradientCache",
    "Interrupted",
    "NonFiniteEmbeddings",
    "NonFiniteLoss",
    "Observer",
    "OutOfMemory",
    "PinnedBatchSampler",
    "Projection",
    "RepresentativeSampler",
    "TrainConfig",
    "Trainer",
    "embed",
    "embed_run",
    "evaluate",
    "evaluate_pixels",
    "evaluate_run",
    "export_run",
    "load_encoder",
    "write_embeddings",
]
