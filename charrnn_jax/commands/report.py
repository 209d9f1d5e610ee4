"""`charrnn report`: a run as one web page."""

import argparse
import time
from pathlib import Path

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    moved_text_flag,
    open_run,
    positive,
)
from charrnn_jax.messages import show

_FORMATS = ("pdf", "png", "svg")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the run and of the report."""
    checkpoint_flags(parser)
    parser.add_argument(
        "--figures",
        type=_formats,
        default=(),
        metavar="FORMAT,...",
        help=f"also write each figure as a file, of {', '.join(_FORMATS)}",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=positive,
        const=10,
        metavar="SECONDS",
        help="look for new rows every so many seconds, and write the report again; default: 10",
    )
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Writes the report into the workdir, once or until Ctrl-C."""
    trained = open_run(args, overrides)
    from charrnn_jax.reports.run.copies import Copies
    from charrnn_jax.reports.run.report import write_run_report

    copies = Copies(trained, path=args.path)
    while True:
        written = _times(trained.workdir)
        write_run_report(trained, trained.workdir, copies=copies, formats=args.figures)
        show(f"Step {trained.step:,}: {trained.workdir / 'report.html'}", flush=True)
        if not args.watch:
            return
        while _times(trained.workdir) == written:
            time.sleep(args.watch)
        trained = open_run(args, overrides)


def _times(workdir: Path) -> list[int]:
    """Returns when each thing that a report shows was written; 0: it does not exist."""
    names = ("metrics.jsonl", "samples.jsonl", "evaluation.json", "judgement.json", "checkpoints")
    files = [workdir / name for name in names]
    return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    if wrong := [name for name in formats if name not in _FORMATS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not one of {', '.join(_FORMATS)}")
    return formats
