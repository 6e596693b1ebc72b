"""The options of ``dmlap train``: one for each field of `TrainConfig`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmlap_kernels.data import SOURCES
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.torchrun import TIMEOUT
from dmlap_kernels.trainer import TrainConfig, defaults
from dmlap_kernels.trainer.class_mining import SEARCHES
from dmlap_kernels.trainer.config import (
    CLASS_CHOICES,
    METHODS,
    PROXIMAL_FORMS,
    REPRESENTATIVE_CHOICES,
)
from dmlap_kernels.trainer.config_files import CONFIGS
from dmlap_kernels.trainer.mixed_precision import DTYPES
from dmlap_kernels.trainer.objective import SIDES
from dmlap_kernels.trainer.optimization import OPTIMIZERS, SCHEDULES


class Option(NamedTuple):
    """A command-line option that sets a field of `TrainConfig`."""

    flag: str
    field: str
    type: Any
    metavar: str | None
    help: str
    choices: Sequence[str] | None = None


MAIN = (
    Option(
        "--data",
        "data",
        str,
        "SOURCE",
        f"one of {', '.join(SOURCES)}; photographs of your own: folder:PATH",
    ),
    Option("--loss", "loss", str, None, "loss function", (*LOSSES, *PROXY_LOSSES)),
    Option("--method", "method", str, None, "alternating projections or plain batches", METHODS),
    Option("--steps", "steps", int, "N", "optimizer steps"),
    Option("--seed", "seed", int, "S", "seed of weights, batches and augmentation"),
)
DATA = (
    Option(
        "--image-size",
        "image_size",
        int,
        "PIXELS",
        "side of the squares that images are scaled to and cropped to (default: 64 for folders, or "
        "theirs if smaller; 224 for cub, cars, sop and inshop; 28 for glyphs; else theirs)",
    ),
    Option(
        "--data-seed",
        "data_seed",
        int,
        "S",
        "seed of the random parts of the data, such as which classes are kept for the test",
    ),
    Option(
        "--validation",
        "validation",
        float,
        "SHARE",
        "training classes held out to watch instead of the test classes",
    ),
    Option(
        "--validation-fold", "validation_fold", int, "FOLD", "hold out one quarter of them, 0 to 3"
    ),
)
TRAINING = (
    Option(
        "--classes-per-batch",
        "classes_per_batch",
        int,
        "C",
        f"classes in a batch (default: {defaults.CLASSES_PER_BATCH})",
    ),
    Option("--samples-per-class", "samples_per_class", int, "M", "samples of each of them"),
    Option("--chunk-size", "chunk_size", int, "N", "images the encoder gets at a time"),
    Option("--accumulate", "accumulate", int, "N", "batches of a step, whose losses are averaged"),
    Option("--amp", "amp", str, None, "mixed precision of the encoder", tuple(DTYPES)),
    Option("--encoder", "encoder", str, "ENCODER", "conv, conv:W,W,... or timm:NAME"),
    Option("--weights", "weights", str, "FILE", "weights that the encoder starts from"),
    Option(
        "--freeze", "freeze", str, "NAMES", "parts of the encoder that learn nothing, with commas"
    ),
    Option(
        "--backbone-rate",
        "backbone_rate",
        float,
        "FACTOR",
        "learning rate of the encoder before its last layer, as a multiple",
    ),
    Option("--embedding-dim", "embedding_dim", int, "D", "length of an embedding"),
    Option("--optimizer", "optimizer", str, None, "optimizer", tuple(OPTIMIZERS)),
    Option("--learning-rate", "learning_rate", float, "RATE", "peak of the schedule"),
    Option(
        "--loss-rate",
        "loss_rate",
        float,
        "FACTOR",
        "learning rate of proxies or a learnable beta, as a multiple of it",
    ),
    Option("--schedule", "schedule", str, None, "of the learning rate", tuple(SCHEDULES)),
    Option("--device", "device", str, "DEVICE", "torch device; auto: cuda if there is one"),
    Option(
        "--eval-every", "eval_every", int, "N", "steps between evaluations (default: an eighth)"
    ),
)
DMLAP = (
    Option(
        "--projection-steps", "projection_steps", int, "L", "batches that keep the representatives"
    ),
    Option(
        "--patience", "patience", int, "N", "evaluations without gain that end a projection early"
    ),
    Option("--monitor-every", "monitor_every", int, "N", "steps between these evaluations"),
    Option("--proximal-weight", "proximal_weight", float, "LAMBDA", "weight of the proximal term"),
    Option(
        "--proximal-decay",
        "proximal_decay",
        float,
        "FACTOR",
        "what it is multiplied by with each projection after the second",
    ),
    Option(
        "--proximal-form",
        "proximal_form",
        str,
        None,
        "in the gradient, or back after the step, whatever the optimizer makes of gradients",
        PROXIMAL_FORMS,
    ),
    Option(
        "--in-batch-weight", "in_batch_weight", float, "W", "weight of the ordinary in-batch loss"
    ),
    Option(
        "--representatives",
        "representatives",
        str,
        None,
        "side of the representatives in their constraints with samples",
        SIDES,
    ),
    Option(
        "--between-weight",
        "between_weight",
        float,
        "W",
        "weight of the loss among representatives",
    ),
    Option(
        "--representatives-per-class",
        "representatives_per_class",
        int,
        "R",
        "representatives of each class",
    ),
    Option(
        "--representative-choice",
        "representative_choice",
        str,
        None,
        "how they are chosen",
        REPRESENTATIVE_CHOICES,
    ),
    Option(
        "--representative-pool",
        "representative_pool",
        int,
        "N",
        "samples of each class that k_center and medoid choose from",
    ),
    Option(
        "--classes", "classes", str, None, "draw classes uniformly or mine hard ones", CLASS_CHOICES
    ),
    Option("--hard-share", "hard_share", float, "SHARE", "share of mined classes in a batch"),
    Option("--hard-pool", "hard_pool", int, "K", "hardest classes of each class to draw from"),
    Option(
        "--hard-refresh",
        "hard_refresh",
        int,
        "N",
        "steps between embeddings of all representatives",
    ),
    Option("--hard-warmup", "hard_warmup", int, "N", "steps over which the share grows from 0"),
    Option("--hard-search", "hard_search", str, None, "exact or by an index of faiss", SEARCHES),
)
FLAGS = {o.field: o.flag for o in (*MAIN, *DATA, *TRAINING, *DMLAP)} | {
    "augment": "--no-augment",
    "drop_small_classes": "--drop-small-classes",
    "drop_unreadable": "--drop-unreadable",
    "pretrained": "--pretrained",
    "freeze_batch_norm": "--freeze-batch-norm",
    "compile": "--compile",
    "channels_last": "--channels-last",
    "augment_representatives": "--augment-representatives",
    "loss_options": "--loss-option",
    "optimizer_options": "--optimizer-option",
}


def add_train(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:
    train = commands.add_parser(
        "train",
        help="train an encoder",
        description="Train an encoder. Without options: DMLAP on rendered glyphs. On several GPUs: "
        "torchrun --nproc-per-node N -m dmlap_kernels train ..., with the same options; the "
        "processes share each batch.",
    )
    _add_options(train, MAIN)
    train.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder for the checkpoint, metrics.json, curves.png and the report; must not hold a "
        "run (default: runs/DATA-METHOD-seedS, as in runs/folder-dmlap-seed0)",
    )
    train.add_argument(
        "--config",
        metavar="NAME",
        help=f"start from the values of {', '.join(CONFIGS)} or of a JSON file; options win",
    )
    train.add_argument(
        "--resume",
        metavar="DIR",
        type=Path,
        help="continue the run in DIR, with the same configuration; but --data may say where the "
        "same images are now, --steps prolong a run of a constant schedule, --chunk-size save "
        "memory",
    )
    train.add_argument("--tensorboard", action="store_true", help="also write event files")
    train.add_argument(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=defaults.CHECKPOINT_EVERY,
        help=f"steps between checkpoints (default: {defaults.CHECKPOINT_EVERY})",
    )
    train.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="processes that prepare batches ahead, without a difference to the result (default: "
        "one for each core, four at most, for images that stay in their files; else 0)",
    )
    train.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT,
        help=f"how long a process of torchrun waits for the others (default: {TIMEOUT:.0f})",
    )
    data = train.add_argument_group("data")
    _add_options(data, DATA)
    data.add_argument(
        "--no-augment",
        dest="augment",
        action="store_false",
        default=argparse.SUPPRESS,
        help="no random distortion of the samples",
    )
    _add_switches(
        data,
        drop_small_classes="leave out training classes of a single image",
        drop_unreadable="leave out files of folder:PATH that are no readable images",
    )
    training = train.add_argument_group("training")
    _add_options(training, TRAINING)
    for name, what, example in (
        ("loss_options", "loss", "neg_margin=0.8"),
        ("optimizer_options", "optimizer", "weight_decay=1e-4"),
    ):
        training.add_argument(
            FLAGS[name],
            dest=name,
            metavar="NAME=VALUE",
            type=_assignment,
            action="append",
            default=argparse.SUPPRESS,
            help=f"keyword of the {what}, for example {example}; may be repeated",
        )
    _add_switches(
        training,
        pretrained="start an encoder of timm from its pretrained weights",
        freeze_batch_norm="keep the batch normalisation of an encoder of timm as it is",
        compile="train the encoder through torch.compile",
        channels_last="keep weights and images with their channels last",
    )
    dmlap = train.add_argument_group("alternating projections (--method dmlap)")
    _add_options(dmlap, DMLAP)
    _add_switches(
        dmlap,
        augment_representatives="distort representatives as samples are",
    )
    train.set_defaults(run=run)


def _add_options(group: Any, options: Sequence[Option]) -> None:
    # SUPPRESS: only what was given is compared with a run that is resumed.
    for option in options:
        default = getattr(TrainConfig, option.field)
        group.add_argument(
            option.flag,
            dest=option.field,
            type=option.type,
            choices=option.choices,
            metavar=option.metavar,
            default=argparse.SUPPRESS,
            help=option.help if default is None else f"{option.help} (default: {default})",
        )


def _add_switches(group: Any, **fields: str) -> None:
    for name, what in fields.items():
        group.add_argument(
            FLAGS[name],
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{what} (default: {'yes' if getattr(TrainConfig, name) else 'no'})",
        )


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
