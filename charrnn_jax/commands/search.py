"""`charrnn search`: searches the space of an experiment's get_search, within a budget."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn_jax.commands.arguments import (
    baseline_flag,
    experiment_files,
    load_config,
    positive,
    register_experiments,
    register_flag,
    reject,
    run_flags,
)
from charrnn_jax.errors import TrainingError, UserError
from charrnn_jax.messages import show

if TYPE_CHECKING:
    from charrnn_jax.sweeps.plan import Plan
    from charrnn_jax.sweeps.search import Search


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a search, including its budget."""
    run_flags(parser)
    parser.add_argument(
        "--num_trials", type=positive, metavar="N", help="the budget: number of trials in all"
    )
    parser.add_argument(
        "--sampler", choices=("tpe", "random"), help="how values are chosen; default: tpe"
    )
    parser.add_argument(
        "--pruner", choices=("asha", "none"), help="how poor trials are ended; default: asha"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes at a time; default: one for each GPU, or for each CPU core",
    )
    parser.add_argument("--dry_run", action="store_true", help="only show the space")
    baseline_flag(parser)
    register_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains the remaining trials of the budget, and writes the report of all trials."""
    register_experiments(args)
    search = _open_search(args, overrides)
    if search is None:
        return
    from charrnn_jax.files import locked
    from charrnn_jax.sweeps.jobs import Job
    from charrnn_jax.sweeps.local import make_workers, run_jobs
    from charrnn_jax.sweeps.table import SweepTable, describe_counts
    from charrnn_jax.sweeps.units import write_report

    units, workdir = search.units, search.workdir
    show(f"{search.num_trials} trials in {workdir}; {len(units)} of them were started before")
    jobs = (
        Job((unit,), workdir, experiments=experiment_files(args)) for unit in search.remaining()
    )
    with (
        locked(workdir, doing="running a sweep"),
        SweepTable(units, num_units=search.num_trials) as table,
    ):
        run_jobs(jobs, make_workers(args.workers), table=table)
    search.tell_ended()
    notes = search.notes()
    write_report(units, workdir, baseline=args.baseline, notes=notes)
    counts = describe_counts([unit.read_status()["status"] for unit in units])
    show("\n".join([f"{counts}; the report is {workdir / 'sweep.html'}", *notes[1:]]))
    if not all(unit.has_ended() for unit in units):
        raise TrainingError("not all trials have ended; the same command resumes them")
    best = search.best()
    if best is None:
        raise TrainingError(f"no trial was trained to its end; see {workdir / 'logs'}")
    values = [f"--config.{name}={value}" for name, value in best.overrides.items()]
    command = shlex.join(["charrnn", "train", *search.plan.experiment, *values])
    show(
        "To train it with other seeds (longer with --config.train.num_steps or num_epochs):\n"
        f"  for seed in 1 2 3; do {command} --config.seed=$seed; done"
    )


def _open_search(args: argparse.Namespace, overrides: list[str]) -> "Search | None":
    """Returns the search of --config or --workdir; a dry run only prints it and returns None."""
    if not args.config and args.workdir:
        return _open_saved(args, overrides)
    plan, workdir = _load_plan(args, overrides)
    show("\n  ".join(plan.describe()))
    if args.dry_run:
        return None
    if not args.num_trials:
        raise UserError("a search needs a budget: give --num_trials=N")
    from charrnn_jax.sweeps.search import create_search

    return create_search(plan, workdir, num_trials=args.num_trials)


def _open_saved(args: argparse.Namespace, overrides: list[str]) -> "Search | None":
    reject(overrides)
    if args.sampler or args.pruner:
        raise UserError(
            "--sampler and --pruner need --config: without it, the search in --workdir is resumed"
        )
    from charrnn_jax.sweeps.search import Search

    search = Search(args.workdir)
    show("\n  ".join(search.plan.describe()))
    if args.dry_run:
        return None
    if args.num_trials:
        search.set_budget(args.num_trials)
    return search


def _load_plan(args: argparse.Namespace, overrides: list[str]) -> tuple["Plan", Path]:
    """Returns the plan of --config and the workdir. A dry run must not need Optuna for this."""
    from charrnn_jax.experiment import call_experiment
    from charrnn_jax.sweeps import space
    from charrnn_jax.sweeps.plan import make_plan

    config, workdir = load_config(args, overrides)
    if not args.workdir:
        workdir = workdir.with_name(f"{workdir.name}-search")
    file, _, arg = args.config.partition(":")
    plan = make_plan(
        config,
        call_experiment(file, "get_search", space, arg),
        sampler=args.sampler or "tpe",
        pruner=args.pruner or "asha",
        experiment=[f"--config={args.config}", *overrides],
    )
    return plan, workdir
