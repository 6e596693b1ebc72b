"""The ``dmlap`` command: train, eval, report, info."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from dmlap_kernels import __version__, info
from dmlap_kernels.data import SOURCES, DataError, parse_source
from dmlap_kernels.extras import MissingExtra
from dmlap_kernels.losses import LOSSES
from dmlap_kernels.report.page import REPORT_FILE, write_report
from dmlap_kernels.trainer import (
    Interrupted,
    NonFiniteLoss,
    TrainConfig,
    Trainer,
    evaluate_run,
)
from dmlap_kernels.trainer.checkpoint import load_checkpoint
from dmlap_kernels.trainer.config import (
    CLASS_CHOICES,
    DMLAP_FIELDS,
    HARD_FIELDS,
    METHODS,
    SIDES,
    TIMM_FIELDS,
)
from dmlap_kernels.trainer.config_files import CONFIGS, merged
from dmlap_kernels.trainer.progress import Progress
from dmlap_kernels.trainer.results import CURVES_FILE, METRICS_FILE
from dmlap_kernels.trainer.tensorboard import EventWriter

CHECKPOINT_EVERY = 200


class _Option(NamedTuple):
    """A command-line option that sets a field of `TrainConfig`."""

    flag: str
    field: str
    type: Any
    metavar: str | None
    help: str
    choices: Sequence[str] | None = None


_MAIN = (
    _Option("--data", "data", str, "SOURCE", f"one of {', '.join(SOURCES)}"),
    _Option("--loss", "loss", str, None, "loss function", tuple(LOSSES)),
    _Option("--method", "method", str, None, "alternating projections or plain batches", METHODS),
    _Option("--steps", "steps", int, "N", "optimizer steps"),
    _Option("--seed", "seed", int, "S", "seed of weights, batches and augmentation"),
)
_DATA = (
    _Option("--image-size", "image_size", int, "PIXELS", "side of the images (default: theirs)"),
    _Option("--data-seed", "data_seed", int, "S", "seed of the random parts of the data"),
    _Option(
        "--validation",
        "validation",
        float,
        "SHARE",
        "training classes held out to watch instead of the test classes",
    ),
    _Option(
        "--validation-fold", "validation_fold", int, "FOLD", "hold out one quarter of them, 0 to 3"
    ),
)
_TRAINING = (
    _Option(
        "--classes-per-batch", "classes_per_batch", int, "C", "classes in a batch (default: 24)"
    ),
    _Option("--samples-per-class", "samples_per_class", int, "M", "samples of each of them"),
    _Option("--chunk-size", "chunk_size", int, "N", "images the encoder gets at a time"),
    _Option("--encoder", "encoder", str, "ENCODER", "conv or timm:NAME"),
    _Option("--embedding-dim", "embedding_dim", int, "D", "length of an embedding"),
    _Option("--learning-rate", "learning_rate", float, "RATE", "peak of the one-cycle schedule"),
    _Option("--device", "device", str, "DEVICE", "torch device; auto: cuda if there is one"),
    _Option(
        "--eval-every", "eval_every", int, "N", "steps between evaluations (default: an eighth)"
    ),
)
_DMLAP = (
    _Option(
        "--projection-steps", "projection_steps", int, "L", "batches that keep the representatives"
    ),
    _Option(
        "--patience", "patience", int, "N", "evaluations without gain that end a projection early"
    ),
    _Option("--monitor-every", "monitor_every", int, "N", "steps between these evaluations"),
    _Option("--proximal-weight", "proximal_weight", float, "LAMBDA", "weight of the proximal term"),
    _Option(
        "--in-batch-weight", "in_batch_weight", float, "W", "weight of the ordinary in-batch loss"
    ),
    _Option(
        "--representatives",
        "representatives",
        str,
        None,
        "side of the representatives in their constraints with samples",
        SIDES,
    ),
    _Option(
        "--classes", "classes", str, None, "draw classes uniformly or mine hard ones", CLASS_CHOICES
    ),
    _Option("--hard-share", "hard_share", float, "SHARE", "share of mined classes in a batch"),
    _Option("--hard-pool", "hard_pool", int, "K", "hardest classes of each class to draw from"),
    _Option("--hard-refresh", "hard_refresh", int, "N", "steps between minings"),
)
_FLAGS = {o.field: o.flag for o in (*_MAIN, *_DATA, *_TRAINING, *_DMLAP)} | {
    "augment": "--no-augment",
    "pretrained": "--pretrained",
    "freeze_batch_norm": "--freeze-batch-norm",
    "loss_options": "--loss-option",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except _Refusal as error:
        print(f"dmlap {args.command}: {error}", file=sys.stderr)
        return 2
    # Photographs are read on the way: one may turn out to be broken.
    except (NonFiniteLoss, DataError) as error:
        print(f"dmlap {args.command}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dmlap {args.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


class _Refusal(Exception):
    """What was asked for cannot be done; the message says why."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OSError, MissingExtra) as error:
        raise _Refusal(error) from error


def _train(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name in _FLAGS if hasattr(args, name)}
    if "loss_options" in given:
        given["loss_options"] = dict(given["loss_options"])
    with _stop_on_signals() as stop:
        with _refusals():
            trainer = _resumed(args, given) if args.resume else _fresh(args, given)
        assert trainer.out is not None
        if trainer.step == trainer.config.steps and (trainer.out / METRICS_FILE).exists():
            print(f"{trainer.out} is finished: nothing to resume")
            return 0
        _announce(trainer)
        try:
            results = _run(trainer, args, stop)
        except Interrupted as error:
            print(
                f"dmlap train: {error}; continue with: dmlap train --resume {trainer.out}",
                file=sys.stderr,
            )
            return 128 + (stop.signal or signal.SIGINT)
    data = results["data"]["test"]
    print(f"\n{data['classes']} classes never seen in training, {data['images']:,} images:")
    _print_table({"model": results["test"], "raw pixels": results["raw_pixels"]})
    print(
        f"\n{1000 * results['seconds_per_step']:.1f} ms a step; {METRICS_FILE}, {CURVES_FILE} and "
        f"the checkpoint are in {trainer.out}"
    )
    return 0


def _fresh(args: argparse.Namespace, given: dict[str, Any]) -> Trainer:
    values = merged(args.config, given)
    config = TrainConfig(**values)
    for fields, applies, to_what in (
        (DMLAP_FIELDS, config.is_dmlap, "--method dmlap"),
        (HARD_FIELDS, config.classes == "hard", "--classes hard"),
        (TIMM_FIELDS, config.encoder != "conv", "--encoder timm:NAME"),
        (("monitor_every",), config.patience is not None, "--patience"),
    ):
        idle = [_FLAGS[name] for name in fields if name in given]
        if idle and not applies:
            raise ValueError(f"{', '.join(idle)} can only be given with {to_what}")
    kind, path = parse_source(config.data)
    if path:
        absolute = Path(path).expanduser().resolve()
        config = TrainConfig(**{**values, "data": f"{kind}:{absolute}"})
    out = args.out or Path("runs", f"{kind}-{config.method}-seed{config.seed}")
    return Trainer(config, out=out, checkpoint_every=args.checkpoint_every)


def _resumed(args: argparse.Namespace, given: dict[str, Any]) -> Trainer:
    if args.out:
        raise ValueError("--out cannot be given with --resume, which continues in its own folder")
    if args.config:
        raise ValueError("--config cannot be given with --resume, which keeps its configuration")
    saved = load_checkpoint(args.resume)[1]["config"]
    for name, value in given.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{_FLAGS[name]} {value} differs from the run in {args.resume}, which has "
                f"{saved.get(name)}; a resumed run keeps its configuration"
            )
    return Trainer.resume(args.resume, checkpoint_every=args.checkpoint_every)


def _run(trainer: Trainer, args: argparse.Namespace, stop: _SignalFlag) -> dict[str, Any]:
    assert trainer.out is not None
    with contextlib.ExitStack() as stack:
        with _refusals():
            trainer.observers.append(
                stack.enter_context(Progress(trainer.config.steps, trainer.step))
            )
            if args.tensorboard:
                writer = EventWriter(trainer.out / "tensorboard", trainer.step)
                stack.callback(writer.close)
                trainer.observers.append(writer)
        return trainer.run(stop)


def _announce(trainer: Trainer) -> None:
    config, data = trainer.config, trainer.data
    print(
        f"{data.name}: {data.train.num_classes} training classes ({len(data.train):,} images), "
        f"{data.test.num_classes} test classes ({len(data.test):,} images)"
    )
    print(
        f"{config.method}, {config.loss} loss, {config.steps} steps on {trainer.device}, "
        f"from step {trainer.step}, to {trainer.out}",
        flush=True,
    )


def _eval(args: argparse.Namespace) -> int:
    with _refusals():
        metrics = evaluate_run(
            args.folder,
            data=args.data,
            ks=args.ks,
            device=args.device,
            clustering=args.clustering,
        )
    if args.json:
        print(json.dumps(metrics, indent=2))
    else:
        _print_table({"model": metrics})
    return 0


def _print_table(columns: dict[str, dict[str, float]]) -> None:
    widths = [max(8, len(title)) for title in columns]
    print(" " * 12 + "".join(f"  {t:>{w}}" for t, w in zip(columns, widths, strict=True)))
    for name in next(iter(columns.values())):
        values = [column[name] for column in columns.values()]
        print(f"{name:<12}" + "".join(f"  {v:{w}.4f}" for v, w in zip(values, widths, strict=True)))


def _report(args: argparse.Namespace) -> int:
    with _refusals():
        path = write_report(args.folders, args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser")
    return 0


def _info(args: argparse.Namespace) -> int:
    facts = info.collect()
    print(json.dumps(facts, indent=2) if args.json else info.render(facts))
    return 0


class _SignalFlag:
    """True once a signal to stop came in; a second one does not wait."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_SignalFlag]:
    flag = _SignalFlag()
    before = {n: signal.signal(n, flag.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dmlap", description="Deep metric learning with alternating projections."
    )
    parser.add_argument("--version", action="version", version=f"dmlap_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    evaluate = commands.add_parser(
        "eval", help="Recall@K, R-precision and MAP@R of a run on its test classes"
    )
    evaluate.add_argument("folder", metavar="DIR", type=Path, help="folder of the run")
    evaluate.add_argument("--data", metavar="SOURCE", help="other data (default: that of the run)")
    evaluate.add_argument(
        "--ks",
        metavar="K,K,...",
        type=_numbers,
        help="values of K (default: those customary on the data, as in 1,2,4,8)",
    )
    evaluate.add_argument(
        "--clustering",
        action="store_true",
        help="also NMI, F1 and AMI of a k-means clustering (extra: faiss)",
    )
    evaluate.add_argument("--device", metavar="DEVICE", default="auto", help="default: auto")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_eval)
    report = commands.add_parser(
        "report", help="one HTML page with curves, neighbours, a map and hard classes of runs"
    )
    report.add_argument(
        "folders", metavar="DIR", type=Path, nargs="+", help="folder of a run; several: compared"
    )
    report.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"the page (default: {REPORT_FILE} in DIR, or here for several)",
    )
    report.set_defaults(run=_report)
    state = commands.add_parser("info", help="what was built, and what runs here")
    state.add_argument("--json", action="store_true", help="print JSON")
    state.set_defaults(run=_info)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train an encoder",
        description="Train an encoder. Without options: DMLAP on rendered glyphs.",
    )
    _add_options(train, _MAIN)
    train.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the run (default: runs/NAME)"
    )
    train.add_argument(
        "--config",
        metavar="NAME",
        help=f"start from the values of {', '.join(CONFIGS)} or of a JSON file; options win",
    )
    train.add_argument("--resume", metavar="DIR", type=Path, help="continue the run in DIR")
    train.add_argument("--tensorboard", action="store_true", help="also write event files")
    train.add_argument(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=CHECKPOINT_EVERY,
        help=f"steps between checkpoints (default: {CHECKPOINT_EVERY})",
    )
    data = train.add_argument_group("data")
    _add_options(data, _DATA)
    data.add_argument(
        "--no-augment",
        dest="augment",
        action="store_false",
        default=argparse.SUPPRESS,
        help="no random distortion of the samples",
    )
    training = train.add_argument_group("training")
    _add_options(training, _TRAINING)
    training.add_argument(
        "--loss-option",
        dest="loss_options",
        metavar="NAME=VALUE",
        type=_assignment,
        action="append",
        default=argparse.SUPPRESS,
        help="keyword of the loss, for example neg_margin=0.8; may be repeated",
    )
    for name, what in (
        ("pretrained", "start an encoder of timm from its pretrained weights"),
        ("freeze_batch_norm", "keep the batch normalisation of an encoder of timm as it is"),
    ):
        training.add_argument(
            _FLAGS[name],
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=what,
        )
    _add_options(train.add_argument_group("alternating projections (--method dmlap)"), _DMLAP)
    train.set_defaults(run=_train)


def _add_options(group: Any, options: Sequence[_Option]) -> None:
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


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as in 1,2,4,8, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
