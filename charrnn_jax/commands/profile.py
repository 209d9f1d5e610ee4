"""`charrnn profile`: where the time and the memory of training go."""

import argparse
import contextlib
import json
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn_jax.commands.arguments import config_flag, load_config, path, positive
from charrnn_jax.messages import NOTES, PROGRESS, format_seconds, show

if TYPE_CHECKING:
    from charrnn_jax.training.profile import Profile

_LABEL = 16  # width of the first column


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --steps, --trace and --json."""
    config_flag(parser)
    parser.set_defaults(workdir=None)  # the session has a temporary one
    parser.add_argument(
        "--steps",
        type=positive,
        default=20,
        metavar="N",
        help="training steps of each part of the session; default: 20",
    )
    parser.add_argument(
        "--trace", type=path, metavar="DIR", help="write a trace of N more steps to a new folder"
    )
    parser.add_argument("--json", action="store_true", help="print all results as JSON")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the session and prints the table."""
    config, _ = load_config(args, overrides)
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.files import creating
    from charrnn_jax.host_devices import make_cores_devices
    from charrnn_jax.training.profile import profile

    keep_compiled_programs()
    make_cores_devices()
    trace = creating(args.trace) if args.trace else contextlib.nullcontext()
    NOTES.info(f"Training {args.config} for a few steps, in a temporary folder")
    with trace as folder, _without_progress():
        found = profile(config, num_steps=args.steps, trace=folder)
    if args.json:
        show(json.dumps(found.to_dict(), indent=2))
        return
    model, data = config.model, config.data
    show(
        f"{args.config}: {model.num_layers} x {model.cell} of {model.hidden_size} units, batches "
        f"of {data.batch_size} x {data.sequence_length} characters, {model.dtype}, "
        f"{found.num_devices} device(s) of kind {found.device}\n"
    )
    for line in (*_table(found), "", *_figures(found)):
        show(line)
    if args.trace:
        _explain_trace(args.trace)


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """Keeps the lines of training out of the output, unless they were asked for (--verbose)."""
    level = PROGRESS.level
    if level > logging.DEBUG:
        PROGRESS.setLevel(logging.WARNING)
    try:
        yield
    finally:
        PROGRESS.setLevel(level)


def _table(found: "Profile") -> Iterator[str]:
    total, run_total = found.total_seconds, sum(found.run_seconds.values())
    heading = f"{'phase':{_LABEL}}{'seconds':>10}{'share':>9}{'times':>7}{'each':>14}"
    yield heading + f"{'whole run':>13}" * bool(run_total)
    for name, phase in found.phases.items():
        line = f"{name:{_LABEL}}{phase.seconds:10.3f}{phase.seconds / total:9.1%}"
        each = f"{1000 * phase.seconds / phase.times:,.2f} ms" if phase.times else ""
        line += f"{phase.times or '':>7}{each:>14}"
        if name in found.run_seconds:
            line += f"{found.run_seconds[name] / run_total:13.1%}"
        yield line.rstrip()
    yield (
        f"{'together':{_LABEL}}{total:10.3f}{1:9.1%}, of {found.wall_seconds:.3f} s of wall time"
    )


def _figures(found: "Profile") -> Iterator[str]:
    def line(name: str, text: str) -> str:
        return f"{name:{_LABEL}}{text}"

    yield line(
        "speed",
        f"{found.usual_chars_per_second:,.0f} characters/s; "
        f"{found.waiting_chars_per_second:,.0f} while each phase is waited for",
    )
    yield line("FLOPs a step", f"{found.step_flops / 1e9:,.4g} G in products, by formula")
    if found.xla_flops is not None:
        yield line("", f"{found.xla_flops / 1e9:,.4g} G by XLA, which counts each loop's body once")
    rate, size = found.step_flops_per_second, found.product_size
    yield line(
        "FLOP/s",
        f"{rate / 1e9:,.1f} G in the train step, {rate / found.product_rate:.0%} of "
        f"{found.product_rate / 1e9:,.1f} G in products of {size} x {size}",
    )
    if found.peak_bytes is not None:
        whose = "the process, libraries included" if found.device == "cpu" else "the device"
        yield line("peak memory", f"{found.peak_bytes / 1e6:,.0f} MB, of {whose}")
    if found.run_steps:
        seconds = sum(found.run_seconds.values())
        yield line("whole run", f"{found.run_steps:,} steps, about {format_seconds(seconds)}")


def _explain_trace(folder: Path) -> None:
    (file,) = folder.rglob("*.trace.json.gz")
    show(f"\nTrace: open {file}\nat https://ui.perfetto.dev, or run")
    show(f"  pip install xprof && xprof --port=8791 {shlex.quote(str(folder))}")
