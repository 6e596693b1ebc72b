"""The ``dmlap`` command: train, eval, embed, export, report, calibrate, info."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dmlap_kernels import __version__, info
from dmlap_kernels.cli_calibrate import add_calibrate, run_calibrate
from dmlap_kernels.cli_embed import add_embed, embedded
from dmlap_kernels.cli_export import add_export, describe_export
from dmlap_kernels.cli_told import (
    next_commands,
    search_lines,
    told_data,
    told_error,
    which_classes,
)
from dmlap_kernels.cli_train import FLAGS, add_train
from dmlap_kernels.data import DataError, DataWarning, parse_source
from dmlap_kernels.extras import require
from dmlap_kernels.plurals import counted
from dmlap_kernels.ranks import LostRank
from dmlap_kernels.report.page import REPORT_FILE, files_beside, write_report
from dmlap_kernels.torchrun import rank_of_environment, says_first, torchrun_ranks
from dmlap_kernels.trainer import (
    Interrupted,
    NonFiniteEmbeddings,
    NonFiniteLoss,
    OutOfMemory,
    TrainConfig,
    Trainer,
    defaults,
    evaluate_run,
)
from dmlap_kernels.trainer.checkpoint import FILE_NAME, load_checkpoint
from dmlap_kernels.trainer.config import (
    DMLAP_FIELDS,
    HARD_FIELDS,
    LOSS_RATE_FIELDS,
    TIMM_FIELDS,
)
from dmlap_kernels.trainer.config_files import CONFIGS, merged
from dmlap_kernels.trainer.diagnosis import is_out_of_memory
from dmlap_kernels.trainer.distributed import RankGroup
from dmlap_kernels.trainer.embedding_files import write_embeddings
from dmlap_kernels.trainer.export import export_run
from dmlap_kernels.trainer.hard_pairs import HardPairs
from dmlap_kernels.trainer.progress import Progress
from dmlap_kernels.trainer.results import CURVES_FILE, METRICS_FILE
from dmlap_kernels.trainer.saving import prolonged
from dmlap_kernels.trainer.tensorboard import EventWriter

# What a resumed run may be given otherwise than it was.
_CHANGEABLE = ("data", "steps", "chunk_size")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be text of any encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = _arguments(argv)
    warnings.formatwarning = _format_warning
    try:
        return args.run(args)
    except _Refusal as error:
        _say(f"dmlap {args.command}: {told_error(error)}")
        return 2
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more is flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # Photographs are read on the way, and files written: one may turn out to be broken.
    except (
        NonFiniteLoss,
        NonFiniteEmbeddings,
        OutOfMemory,
        LostRank,
        DataError,
        OSError,
    ) as error:
        _say(f"dmlap {args.command}: stopped: {told_error(error)}")
        return 1
    except KeyboardInterrupt:
        _say(f"dmlap {args.command}: interrupted")
        return 128 + signal.SIGINT


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Those of the command; of the ranks of torchrun the first one alone says what is wrong."""
    with contextlib.ExitStack() as stack:
        if rank_of_environment():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        return _parser().parse_args(argv)


def _say(text: str) -> None:
    """Tell of the end, once where several ranks come to the same."""
    if says_first(text):
        print(text, file=sys.stderr, flush=True)


_format_code_warning = warnings.formatwarning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning about data in one line; those about code with their line of code, as usual."""
    if issubclass(category, DataWarning):
        return f"dmlap: {message}\n"
    return _format_code_warning(message, category, filename, lineno, line)


class _Refusal(Exception):
    """What was asked for cannot be done; the message says why."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    # Of torch's errors most are RuntimeErrors: sizes that no memory holds, devices that fail.
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
            raise _Refusal(f"out of memory: {error}") from error
        raise _Refusal(error) from error
    except OverflowError as error:
        raise _Refusal(f"a number is too large: {error}") from error


def _train(args: argparse.Namespace) -> int:
    given = {name: getattr(args, name) for name in FLAGS if hasattr(args, name)}
    for name in ("loss_options", "optimizer_options"):
        if name in given:
            given[name] = dict(given[name])
    with contextlib.ExitStack() as stack:
        with _refusals():
            stack.enter_context(torchrun_ranks(args.timeout))
        ranks = RankGroup()
        # torchrun hands signals on, which a terminal has sent to all processes as well.
        stop = stack.enter_context(_stop_on_signals(once=ranks.count > 1))
        with _refusals():
            if not ranks.first:
                warnings.simplefilter("ignore")
            trainer = _resumed(args, given, ranks) if args.resume else _fresh(args, given)
        out = trainer.out
        assert out is not None
        finished = trainer.step == trainer.config.steps
        if finished and ranks.by_first(lambda: (out / METRICS_FILE).exists()):
            if ranks.first:
                print(f"{out} is finished: nothing to resume")
            return 0
        if ranks.first:
            _announce(trainer)
        try:
            results = _run(trainer, args, stop)
        except Interrupted as error:
            _say(f"dmlap train: {error}; continue with: dmlap train --resume {out}")
            return 128 + (stop.signal or signal.SIGINT)
        except LostRank as error:
            raise LostRank(
                "another process of the run has ended, or was not heard of in time; continue from "
                f"the last checkpoint with: dmlap train --resume {out}"
            ) from error
        except DataError as error:
            if not trainer.config.data.startswith("folder:"):
                raise
            raise DataError(
                f"{error}; a new run leaves such files out with --drop-unreadable"
            ) from error
        except (OutOfMemory, OSError) as error:
            if isinstance(error, BrokenPipeError) or not (out / FILE_NAME).exists():
                raise
            raise type(error)(
                f"{error}; continue from the last checkpoint with: dmlap train --resume {out}"
            ) from error
    if not ranks.first:
        return 0
    data = results["data"]["test"]
    print(f"\n{which_classes(data)}, {counted(data['images'], 'image')}:")
    _print_table({"model": results["test"], "raw pixels": results["raw_pixels"]})
    print(
        f"\n{1000 * results['seconds_per_step']:.1f} ms a step; {METRICS_FILE}, {CURVES_FILE} and "
        f"the checkpoint are in {out}"
    )
    print(next_commands(out))
    return 0


def _fresh(args: argparse.Namespace, given: dict[str, Any]) -> Trainer:
    if args.config in CONFIGS and "data" not in given:
        raise ValueError(
            f"--config {args.config} has settings for photographs and needs --data: "
            f"{args.config}:PATH for the official layout, folder:PATH for any other"
        )
    values = merged(args.config, given)
    config = TrainConfig(**values)
    for fields, applies, to_what in (
        (DMLAP_FIELDS, config.is_dmlap, "--method dmlap"),
        (HARD_FIELDS, config.classes == "hard", "--classes hard"),
        (TIMM_FIELDS, config.encoder.startswith("timm:"), "--encoder timm:NAME"),
        (LOSS_RATE_FIELDS, config.learns_in_loss, "a loss that has parameters of its own"),
        (("monitor_every",), config.patience is not None, "--patience"),
        (
            ("representative_pool",),
            config.representative_choice != "random",
            "--representative-choice k_center or medoid",
        ),
    ):
        idle = [FLAGS[name] for name in fields if name in given]
        if idle and not applies:
            raise ValueError(f"{', '.join(idle)} can only be given with {to_what}")
    if config.encoder.startswith("timm:"):
        # Before the data are read, which may take minutes.
        require("timm", purpose=f"encoder {config.encoder!r}", extra="vision")
    kind, path = parse_source(config.data)
    if path:
        config = TrainConfig(**{**values, "data": _absolute(config.data)})
    out = args.out or Path("runs", f"{kind}-{config.method}-seed{config.seed}")
    return Trainer(config, out=out, checkpoint_every=args.checkpoint_every, workers=args.workers)


def _resumed(args: argparse.Namespace, given: dict[str, Any], ranks: RankGroup) -> Trainer:
    if args.out:
        raise ValueError("--out cannot be given with --resume, which continues in its own folder")
    if args.config:
        raise ValueError("--config cannot be given with --resume, which keeps its configuration")
    state = ranks.by_first(lambda: load_checkpoint(args.resume)[1])
    saved, changes = state["config"], {}
    if "data" in given:
        given["data"] = _absolute(given["data"])
    for name, value in given.items():
        if saved.get(name) == value:
            continue
        if name not in _CHANGEABLE:
            raise ValueError(
                f"{FLAGS[name]} {value} differs from the run in {args.resume}, which has "
                f"{saved.get(name)}; a resumed run keeps its configuration"
            )
        changes[name] = value
    if "steps" in changes:
        try:
            prolonged(TrainConfig.from_dict(saved), changes["steps"], state["step"], None)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--steps {changes['steps']} differs from the run in {args.resume}: {error}"
            ) from error
    options = {"checkpoint_every": args.checkpoint_every, "workers": args.workers}
    return Trainer.resume(args.resume, **options, **changes)


def _absolute(source: str) -> str:
    """A source of data with the path in full, so that a run finds it from everywhere."""
    kind, path = parse_source(source)
    return f"{kind}:{Path(path).expanduser().resolve()}" if path else source


def _run(trainer: Trainer, args: argparse.Namespace, stop: _SignalFlag) -> dict[str, Any]:
    assert trainer.out is not None
    with contextlib.ExitStack() as stack:
        if not trainer.ranks.first:
            return trainer.run(stop)
        with _refusals():
            trainer.observers.append(
                stack.enter_context(Progress(trainer.config.steps, trainer.step))
            )
            if args.tensorboard:
                writer = EventWriter(
                    trainer.out / "tensorboard", trainer.step, hard_pairs=HardPairs(trainer)
                )
                stack.callback(writer.close)
                trainer.observers.append(writer)
        return trainer.run(stop)


def _announce(trainer: Trainer) -> None:
    config, data = trainer.config, trainer.data
    print(told_data(config, data))
    if trainer.weights is not None:
        print(trainer.weights)
    print(
        f"{config.method}, {config.loss} loss, {counted(config.steps, 'step')} on {trainer.device}"
        + (f", the first of {count} processes, " if (count := trainer.ranks.count) > 1 else ", ")
        + f"from step {trainer.step}, to {trainer.out}",
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


def _embed(args: argparse.Namespace) -> int:
    with _refusals():
        found = embedded(args)
        write_embeddings(args.out, found)
    rows, width = found.embeddings.shape
    print(
        f"{args.out}: {counted(rows, 'embedding')} of {counted(width, 'number')}, "
        f"{counted(len(found.class_names), 'class')}"
    )
    if lines := search_lines(args.out):
        print(lines)
    return 0


def _export(args: argparse.Namespace) -> int:
    with _refusals():
        exported = export_run(args.folder, args.out)
    print(describe_export(args.out, exported))
    return 0


def _report(args: argparse.Namespace) -> int:
    with _refusals():
        path = write_report(args.folders, args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser")
    if (beside := files_beside(path)) is not None:
        print(f"{beside}: its images of samples; goes wherever the page goes")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    with _refusals():
        return run_calibrate(args)


def _info(args: argparse.Namespace) -> int:
    facts = info.collect()
    print(json.dumps(facts, indent=2) if args.json else info.render(facts))
    return 0


class _SignalFlag:
    """True once a signal to stop came in; a second one does not wait, unless ``once``."""

    def __init__(self, once: bool = False) -> None:
        self.signal: int | None = None
        self._once = once

    def __call__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and not self._once:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def _stop_on_signals(once: bool = False) -> Iterator[_SignalFlag]:
    flag = _SignalFlag(once)
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
    add_train(commands, _train)
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
    evaluate.add_argument(
        "--device", metavar="DEVICE", default=defaults.DEVICE, help=f"default: {defaults.DEVICE}"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_eval)
    add_embed(commands, _embed)
    add_export(commands, _export)
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
    add_calibrate(commands, _calibrate)
    state = commands.add_parser("info", help="what was built, and what runs here")
    state.add_argument("--json", action="store_true", help="print JSON")
    state.set_defaults(run=_info)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as in 1,2,4,8, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
