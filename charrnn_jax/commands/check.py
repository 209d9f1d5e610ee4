"""`charrnn check`: verifies a run or the runs of a sweep, and says what can be resumed."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn_jax.commands.arguments import moved_text_flag, path, path_text, reject
from charrnn_jax.errors import UserError
from charrnn_jax.messages import show

if TYPE_CHECKING:
    from charrnn_jax.workdir.check import Finding


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, --path and --config."""
    parser.add_argument(
        "--workdir", type=path, required=True, metavar="DIR", help="folder of a run or a sweep"
    )
    moved_text_flag(parser)
    parser.add_argument(
        "--config",
        type=path_text,
        metavar="FILE",
        help="experiment that registers names of the run's config",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints a line for each thing checked; raises UserError if there is a problem."""
    reject(overrides)
    from charrnn_jax.experiment import register_file
    from charrnn_jax.workdir.checkpoints import steps

    if args.config:
        register_file(args.config.partition(":")[0])
    workdir: Path = args.workdir
    units = sorted(folder for folder in (workdir / "units").glob("*") if folder.is_dir())
    num_problems = 0
    for folder in units or [workdir]:
        show(folder)
        if units and not steps(folder) and not (folder / "damaged_checkpoints").is_dir():
            show("  not trained yet")
            continue
        for finding in _findings(folder, args.path):
            num_problems += bool(finding.problem)
            state = f"PROBLEM: {finding.problem}" if finding.problem else finding.note
            show(f"  {finding.what:16}{state}")
    if num_problems:
        raise UserError(f"{workdir} has {num_problems} problem(s), shown above")


def _findings(workdir: Path, path: str) -> Iterator["Finding"]:
    """Yields the findings of a run; an error that ends its check is the last one."""
    from charrnn_jax.workdir.check import Finding, check_run

    try:
        yield from check_run(workdir, path=path)
    except UserError as error:
        yield Finding("run", problem=str(error))
