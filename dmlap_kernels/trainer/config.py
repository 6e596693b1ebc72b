"""The configuration of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dmlap_kernels import checks
from dmlap_kernels.data import parse_source
from dmlap_kernels.data.splits import FOLDS
from dmlap_kernels.encoders import EMBEDDING_DIM
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.class_mining import SEARCHES
from dmlap_kernels.trainer.mixed_precision import DTYPES
from dmlap_kernels.trainer.objective import SIDES
from dmlap_kernels.trainer.optimization import OPTIMIZERS, SCHEDULES
from dmlap_kernels.trainer.representatives import CHOICES

# What torch's generators and tensors hold.
_LARGEST = 2**63 - 1

# Pixels of a side, of which a single image takes a gigabyte.
_LARGEST_SIDE = 16384

_FLAGS = (
    "drop_small_classes",
    "drop_unreadable",
    "augment",
    "pretrained",
    "freeze_batch_norm",
    "compile",
    "channels_last",
    "augment_representatives",
)

METHODS = ("dmlap", "plain")
PROXIMAL_FORMS = ("gradient", "decoupled")
CLASS_CHOICES = ("uniform", "hard")
REPRESENTATIVE_CHOICES = ("random", *CHOICES)

# What only alternating projections look at.
DMLAP_FIELDS = (
    "projection_steps",
    "patience",
    "monitor_every",
    "proximal_weight",
    "proximal_decay",
    "proximal_form",
    "in_batch_weight",
    "between_weight",
    "representatives",
    "representatives_per_class",
    "representative_choice",
    "representative_pool",
    "augment_representatives",
    "classes",
    "hard_share",
    "hard_pool",
    "hard_refresh",
    "hard_warmup",
    "hard_search",
)
# What only losses with parameters of their own look at.
LOSS_RATE_FIELDS = ("loss_rate",)
# What only encoders of timm look at.
TIMM_FIELDS = ("pretrained", "freeze_batch_norm")
HARD_FIELDS = ("hard_share", "hard_pool", "hard_refresh", "hard_warmup", "hard_search")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a run.

    The 2019 paper does not publish its lambda, L and margins. ``proximal_weight`` and the form of
    the loss follow the authors' later code (arXiv 2209.09060); the other numbers are ours:
    ``projection_steps``, ``in_batch_weight`` and ``hard_share`` had the best mean over four losses
    on held-out alphabets of Omniglot (``benchmarks/results/evidence``).

    Attributes:
        data: a source of `dmlap_kernels.data.load_data`.
        image_size: side of the images; None: the source's own.
        data_seed: decides the random parts of the data.
        validation: share of the training classes held out to watch progress on; 0: progress is
            watched on the test classes. Nothing is chosen by it in either case.
        validation_fold: hold out one of four runs of the training classes instead, 0 to 3
            (`Dataset.hold_out_fold`).
        drop_small_classes: leave training classes of a single image out, which otherwise are
            refused: before any are held out.
        drop_unreadable: leave files of ``folder:PATH`` out that are no readable images, which
            otherwise are refused.
        augment: distort samples at random.
        loss: a name in `dmlap_kernels.losses.LOSSES` or ``PROXY_LOSSES``.
        loss_options: keywords of that loss, as in `AlternatingObjective`.
        loss_rate: learning rate of the loss's own parameters (proxies, a learnable beta), as a
            multiple of the encoder's; the default gives the 0.01 of Proxy-Anchor's authors.
        method: ``"dmlap"``, or ``"plain"`` for C x M batches with the in-batch loss alone, which
            looks at nothing from ``projection_steps`` on.
        steps: optimizer steps.
        seed: decides initial weights, batches, representatives and augmentation.
        classes_per_batch: C; None: 24, or all training classes if they are fewer.
        samples_per_class: M, the representatives included.
        chunk_size: images that the encoder gets at a time, with one more forward pass, so that
            large batches fit into memory (`GradientCache`); None: the whole batch.
        accumulate: batches of a step, each of C x M samples with a loss of its own; the step's loss
            is their mean.
        amp: train the encoder under autocast in ``"bf16"`` or ``"fp16"``; weights, the loss and all
            evaluation stay in float32. None: float32.
        compile: train the encoder through `torch.compile`.
        channels_last: keep weights and images of the encoder with their channels last, which
            convolutions on recent GPUs and CPUs are faster with.
        encoder: ``"conv"`` for `ConvEncoder`, ``"conv:W,W,..."`` with the channels after each of
            its blocks, or ``"timm:NAME"`` for `TimmEncoder`.
        pretrained: start an encoder of timm from its pretrained weights.
        freeze_batch_norm: keep the batch normalisation of an encoder of timm as it is.
        weights: file of weights that the encoder starts from: safetensors, a state dict of PyTorch,
            or the checkpoint of a run (`load_weights_file`). None: as it is made.
        freeze: names of parts of the encoder, separated by commas, that learn nothing.
        backbone_rate: learning rate of all of the encoder but its last layer, as a multiple.
        embedding_dim: length of an embedding.
        optimizer: ``"adam"``, ``"adamw"``, ``"rmsprop"`` or ``"sgd"``, of `torch.optim`.
        optimizer_options: keywords of that optimizer, besides its learning rate. A
            ``weight_decay`` leaves out norms and biases.
        learning_rate: peak of the schedule, for that optimizer.
        schedule: ``"one_cycle"``, ``"cosine"`` (down to 0) or ``"constant"``.
        device: a torch device, or ``"auto"``: ``cuda`` where there is one, else ``cpu``.
        eval_every: steps between evaluations; None: an eighth of ``steps``.
        projection_steps: L, batches for which representatives are held.
        patience: evaluations on the validation classes without a better Recall@1 after which a
            projection ends early; projections then end with the weights that did best, which are
            the next proximal centre. The classes are those that ``validation`` or
            ``validation_fold`` holds out, or a validation split that the data has. None: exactly
            L batches, and the last weights.
        monitor_every: steps between these evaluations.
        proximal_weight: lambda of the second projection; it is 0 in the first.
        proximal_decay: what lambda is multiplied by with each further projection, 0 to 1.
        proximal_form: ``"gradient"`` adds lambda's term to the gradient, which adaptive optimizers
            scale with all others; ``"decoupled"`` moves the weights back after the step, by about
            lambda of the way that a projection of L batches has made (`Projection`).
        in_batch_weight: weight of the ordinary in-batch loss beside the constraints between
            representatives and samples.
        between_weight: weight of the loss over the pairs of representatives.
        representatives: their side in those constraints, ``"references"``, ``"anchors"`` or
            ``"both"``.
        representatives_per_class: R, 1 to M - 1.
        representative_choice: ``"random"``, without repeats until a class is used up;
            ``"k_center"`` or ``"medoid"``: by the present embeddings of a random pool.
        representative_pool: samples of each class in that pool.
        augment_representatives: distort them as samples are.
        classes: ``"uniform"``, or ``"hard"``: part of the classes are hard for the others.
        hard_share: that part.
        hard_pool: hardest classes of each class to draw from.
        hard_refresh: steps between updates of the hardest classes.
        hard_warmup: steps over which their share grows from 0 to ``hard_share``.
        hard_search: ``"exact"`` (`hard_classes`), or ``"faiss"`` for very many classes: an inverted
            file over the representatives, which may miss some.
    """

    data: str = "glyphs"
    image_size: int | None = None
    data_seed: int = 0
    validation: float = 0.0
    validation_fold: int | None = None
    drop_small_classes: bool = False
    drop_unreadable: bool = False
    augment: bool = True
    loss: str = defaults.LOSS
    loss_options: dict[str, Any] = field(default_factory=dict)
    loss_rate: float = 10.0
    method: str = "dmlap"
    steps: int = 1500
    seed: int = defaults.SEED
    classes_per_batch: int | None = None
    samples_per_class: int = defaults.SAMPLES_PER_CLASS
    chunk_size: int | None = None
    accumulate: int = 1
    amp: str | None = None
    compile: bool = False
    channels_last: bool = False
    encoder: str = "conv"
    pretrained: bool = False
    freeze_batch_norm: bool = False
    weights: str | None = None
    freeze: str = ""
    backbone_rate: float = 1.0
    embedding_dim: int = EMBEDDING_DIM
    optimizer: str = "adam"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    schedule: str = "one_cycle"
    device: str = defaults.DEVICE
    eval_every: int | None = None
    projection_steps: int = defaults.PROJECTION_STEPS
    patience: int | None = None
    monitor_every: int = 20
    proximal_weight: float = defaults.PROXIMAL_WEIGHT
    proximal_decay: float = defaults.PROXIMAL_DECAY
    proximal_form: str = defaults.PROXIMAL_FORM
    in_batch_weight: float = defaults.IN_BATCH_WEIGHT
    between_weight: float = defaults.BETWEEN_WEIGHT
    representatives: str = defaults.SIDE
    representatives_per_class: int = defaults.REPRESENTATIVES_PER_CLASS
    representative_choice: str = "random"
    representative_pool: int = 8
    augment_representatives: bool = False
    classes: str = "hard"
    hard_share: float = defaults.HARD_SHARE
    hard_pool: int = 16
    hard_refresh: int = 100
    hard_warmup: int = defaults.HARD_WARMUP
    hard_search: str = defaults.HARD_SEARCH

    def __post_init__(self) -> None:
        for name in ("data", "device", "freeze"):
            _check_text(name, getattr(self, name))
        if self.weights is not None:
            _check_text("weights", self.weights)
        for name in _FLAGS:
            checks.flag(name, getattr(self, name))
        for name in ("loss_options", "optimizer_options"):
            _check_options(name, getattr(self, name))
        parse_source(self.data)
        checks.choice("loss", self.loss, (*LOSSES, *PROXY_LOSSES))
        checks.choice("method", self.method, METHODS)
        checks.choice("classes", self.classes, CLASS_CHOICES)
        checks.choice("representatives", self.representatives, SIDES)
        checks.choice("representative_choice", self.representative_choice, REPRESENTATIVE_CHOICES)
        checks.choice("proximal_form", self.proximal_form, PROXIMAL_FORMS)
        checks.choice("hard_search", self.hard_search, SEARCHES)
        checks.choice("optimizer", self.optimizer, tuple(OPTIMIZERS))
        checks.choice("schedule", self.schedule, tuple(SCHEDULES))
        if self.amp is not None:
            checks.choice("amp", self.amp, tuple(DTYPES))
        _check_encoder(self.encoder)
        for name, minimum in (
            ("steps", 1),
            ("seed", 0),
            ("data_seed", 0),
            ("samples_per_class", 2),
            ("accumulate", 1),
            ("embedding_dim", 1),
            ("projection_steps", 1),
            ("monitor_every", 1),
            ("hard_pool", 1),
            ("hard_refresh", 1),
            ("hard_warmup", 0),
            ("representatives_per_class", 1),
            ("representative_pool", 2),
        ):
            _at_least(name, getattr(self, name), minimum)
        for name, minimum in (
            ("image_size", 8),
            ("eval_every", 1),
            ("classes_per_batch", 2),
            ("chunk_size", 1),
            ("patience", 1),
            ("validation_fold", 0),
        ):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), minimum)
        if self.image_size is not None and self.image_size > _LARGEST_SIDE:
            raise ValueError(f"image_size must be at most {_LARGEST_SIDE}, got {self.image_size}")
        for name in (
            "proximal_weight",
            "in_batch_weight",
            "between_weight",
            "learning_rate",
            "loss_rate",
            "backbone_rate",
        ):
            checks.number(name, getattr(self, name), minimum=0)
        for name, below in (("validation", 1), ("hard_share", None), ("proximal_decay", None)):
            value = checks.number(name, getattr(self, name), minimum=0)
            if value > 1 or value == below:
                end = "1, which is excluded" if below else "1"
                raise ValueError(f"{name} must be from 0 to {end}, got {value}")
        self._check_validation()
        self._check_representatives()
        if "lr" in self.optimizer_options:
            raise ValueError("optimizer_options must leave lr out: learning_rate sets it")
        if "return_stats" in self.loss_options:
            raise ValueError("loss_options must leave return_stats to the trainer")
        if self.loss_options.get("reduction") == "none":
            raise ValueError("loss_options must give one loss a batch, got reduction='none'")

    def _check_validation(self) -> None:
        fold = self.validation_fold
        if fold is not None and fold >= FOLDS:
            raise ValueError(f"validation_fold must be from 0 to {FOLDS - 1}, got {fold}")
        if fold is not None and self.validation:
            raise ValueError(
                f"validation_fold and validation exclude each other, got validation_fold={fold} "
                f"and validation={self.validation}"
            )

    def _check_representatives(self) -> None:
        if not self.is_dmlap:
            return
        pinned = self.representatives_per_class
        if pinned >= self.samples_per_class:
            raise ValueError(
                "representatives_per_class must be less than samples_per_class="
                f"{self.samples_per_class}, got {pinned}"
            )
        if self.representative_choice != "random" and self.representative_pool < pinned:
            raise ValueError(
                f"representative_pool must be at least representatives_per_class={pinned}, got "
                f"{self.representative_pool}"
            )

    @property
    def is_dmlap(self) -> bool:
        return self.method == "dmlap"

    @property
    def learns_in_loss(self) -> bool:
        """Whether the loss has parameters of its own."""
        return self.loss in PROXY_LOSSES or bool(self.loss_options.get("learn_beta"))

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names in ``freeze``."""
        return tuple(part.strip() for part in self.freeze.split(",") if part.strip())

    @property
    def mines(self) -> bool:
        """Whether part of the classes of a batch are hard for the others."""
        return self.is_dmlap and self.classes == "hard"

    @property
    def evaluation_interval(self) -> int:
        return self.eval_every or -(-self.steps // 8)

    @property
    def log_interval(self) -> int:
        return max(1, self.steps // 100)

    def to_dict(self) -> dict[str, Any]:
        """The fields that mean something for the method, ready for JSON."""
        unused: tuple[str, ...] = () if self.is_dmlap else DMLAP_FIELDS
        if self.is_dmlap and self.classes == "uniform":
            unused = HARD_FIELDS
        if self.representative_choice == "random":
            unused += ("representative_pool",)
        if not self.learns_in_loss:
            unused += LOSS_RATE_FIELDS
        if not self.encoder.startswith("timm:"):
            unused += TIMM_FIELDS
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; unknown names raise ValueError."""
        if unknown := set(values) - {f.name for f in fields(TrainConfig)}:
            raise ValueError(f"unknown configuration entries: {', '.join(sorted(unknown))}")
        return TrainConfig(**values)


def _check_encoder(encoder: Any) -> None:
    kind, colon, rest = encoder.partition(":") if isinstance(encoder, str) else ("", "", "")
    if kind == "conv" and (not colon or parse_widths(rest) is not None):
        return
    if kind == "timm" and rest:
        return
    raise ValueError(f"encoder must be conv, conv:W,W,... or timm:NAME, got {encoder!r}")


def parse_widths(text: str) -> tuple[int, ...] | None:
    """The channels that ``conv:`` is followed by; None if they are not positive integers."""
    parts = text.split(",")
    if not all(p.isascii() and p.isdigit() and len(p) < 10 and int(p) for p in parts):
        return None
    return tuple(map(int, parts))


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {checks.describe(value)}")


def _check_options(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(
            f"{name} must be a dict from names of keywords to values, got {checks.describe(value)}"
        )
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold values that JSON knows, got {value!r}") from error


def _at_least(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if value > _LARGEST:
        raise ValueError(f"{name} must be less than 2**63, got {_shortened(value)}")


def _shortened(value: int) -> str:
    text = hex(value)
    return str(value) if len(text) < 40 else f"a number of {value.bit_length()} bits"
