"""`charrnn sweep`: trains the work units of an experiment, then reports on them."""

import argparse
import contextlib
import shlex
from collections.abc import Mapping, Sequence
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
from charrnn_jax.files import locked
from charrnn_jax.messages import show

if TYPE_CHECKING:
    from charrnn_jax.sweeps.jobs import Job
    from charrnn_jax.sweeps.table import SweepTable
    from charrnn_jax.sweeps.units import WorkUnit

_DOING = "running a sweep"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a sweep and of how its units run."""
    run_flags(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="only show the units and their commands"
    )
    parser.add_argument(
        "--work_unit", metavar="K[,K-K]", help="train these units in this process, without a report"
    )
    parser.add_argument(
        "--retry_failed", action="store_true", help="train failed and diverged units again"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes at a time; default: one for each GPU or CPU core, with Slurm for each unit",
    )
    baseline_flag(parser)
    register_flag(parser)
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="where the processes run: here (the default), or as tasks of a Slurm job",
    )
    slurm = parser.add_argument_group("with --launcher=slurm, for each process")
    slurm.add_argument(
        "--partition", metavar="NAME", help="partition; default: the one of the cluster"
    )
    slurm.add_argument(
        "--time",
        metavar="[D-]HH:MM:SS",
        help="time limit; two to three minutes before it, the process saves and is requeued",
    )
    slurm.add_argument("--memory", metavar="SIZE", help="memory, such as 8G")
    slurm.add_argument("--cpus_per_task", type=positive, metavar="N", help="CPU cores")
    slurm.add_argument("--gpus_per_task", type=positive, metavar="N", help="GPUs")
    slurm.add_argument(
        "--sbatch",
        action="append",
        metavar="OPTION[=VALUE]",
        help="any other option of sbatch, such as account=me; may be repeated",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains what is not done, and writes sweep.html, sweep.md, sweep.csv, sweep.pdf, sweep.svg."""
    from charrnn_jax.sweeps.local import set_up_worker
    from charrnn_jax.sweeps.units import SEARCH_FILE

    if args.work_unit is not None:
        if args.dry_run or args.retry_failed or args.baseline:
            raise UserError(
                "--work_unit cannot be used with --dry_run, --retry_failed or --baseline"
            )
        set_up_worker()
    options = _sbatch_options(args)
    register_experiments(args)
    units, workdir = _open_sweep(args, overrides)
    is_search = (workdir / SEARCH_FILE).is_file()
    if args.work_unit is not None:
        indices = _parse_indices(args.work_unit, len(units))
        _train_here([units[index] for index in indices], is_search=is_search)
    elif is_search:
        raise UserError(f"{workdir} holds a search: charrnn search --workdir={workdir} resumes it")
    else:
        _launch(units, workdir, args=args, overrides=overrides, options=options)


def _launch(
    units: Sequence["WorkUnit"],
    workdir: Path,
    *,
    args: argparse.Namespace,
    overrides: list[str],
    options: dict[str, str | bool],
) -> None:
    """Trains what is not done in worker processes, then reports; a dry run only shows the jobs."""
    from charrnn_jax.reports.sweep.statistics import find_baseline, group
    from charrnn_jax.sweeps.jobs import make_jobs
    from charrnn_jax.sweeps.local import make_workers, run_jobs
    from charrnn_jax.sweeps.slurm import find_tasks
    from charrnn_jax.sweeps.table import SweepTable, describe_counts
    from charrnn_jax.sweeps.units import write_report

    find_baseline(group([unit.read_result() for unit in units]), args.baseline)  # not hours later
    tasks = find_tasks(units, workdir=workdir)
    if tasks and args.launcher == "local":
        raise UserError(f"Slurm still runs {', '.join(tasks)} of this sweep: give --launcher=slurm")
    todo = _to_train(units, tasks, retry_failed=args.retry_failed)
    workers = make_workers(args.workers) if args.launcher == "local" else []
    num_workers = len(workers) or args.workers or max(len(todo), 1)
    jobs = make_jobs(
        todo, workdir=workdir, num_workers=num_workers, experiments=experiment_files(args)
    )
    num_done = sum(unit.is_done() for unit in units)
    show(f"{len(units)} work units in {workdir}: {num_done} done, {len(todo)} to train")
    if args.dry_run:
        _show(units, jobs, args=args, overrides=overrides)
        return
    with locked(workdir, doing=_DOING), SweepTable(units) as table:
        if args.launcher == "slurm":
            _run_in_slurm(jobs, tasks, num_at_once=num_workers, options=options, table=table)
        else:
            run_jobs(jobs, workers, table=table)
    write_report(units, workdir, baseline=args.baseline)
    counts = describe_counts([unit.read_status()["status"] for unit in units])
    show(f"{counts}; the report is {workdir / 'sweep.html'}")
    if not all(unit.is_done() for unit in units):
        raise TrainingError("not all work units are done: --retry_failed trains them again")


def _to_train(
    units: Sequence["WorkUnit"], tasks: Mapping[str, "Job"], *, retry_failed: bool
) -> list["WorkUnit"]:
    """Returns the units that are still to be trained, without the ones that Slurm already has."""
    in_slurm = {unit.name for job in tasks.values() for unit in job.units}
    return [
        unit
        for unit in units
        if unit.name not in in_slurm and not (unit.is_done() if retry_failed else unit.has_ended())
    ]


def _open_sweep(args: argparse.Namespace, overrides: list[str]) -> tuple[list["WorkUnit"], Path]:
    """Returns the work units of --config, or of the sweep in --workdir, and the sweep's folder."""
    from charrnn_jax.experiment import call_experiment
    from charrnn_jax.sweeps import hyper
    from charrnn_jax.sweeps.slurm import find_tasks
    from charrnn_jax.sweeps.units import (
        SEARCH_FILE,
        check_workdirs,
        load_sweep,
        make_units,
        save_sweep,
    )

    if not args.config and args.workdir:
        reject(overrides)
        return load_sweep(args.workdir), args.workdir
    config, workdir = load_config(args, overrides)
    if not args.workdir:
        workdir = workdir.with_name(f"{workdir.name}-sweep")
    file, _, arg = args.config.partition(":")
    sweep = call_experiment(file, "get_hyper", hyper, arg)
    units = make_units(config, sweep, workdir=workdir)
    check_workdirs(units)
    find_tasks(units, workdir=workdir)  # raises before the file that the tasks read is replaced
    if (workdir / SEARCH_FILE).is_file():
        raise UserError(f"{workdir} holds a search: give another --workdir")
    if not args.dry_run:
        # A running launcher reads the file. A worker needs no lock: it writes the same content.
        at_work = args.work_unit is not None
        with contextlib.nullcontext() if at_work else locked(workdir, doing=_DOING):
            save_sweep(workdir, config=config, sweep=sweep)
    return units, workdir


def _parse_indices(text: str, num_units: int) -> list[int]:
    """0,2-4 -> [0, 2, 3, 4]"""
    try:
        ranges = [part.partition("-") for part in text.split(",")]
        indices = [
            index
            for first, dash, last in ranges
            for index in range(int(first), int(last if dash else first) + 1)
        ]
    except ValueError:
        indices = []
    if not indices or not all(0 <= index < num_units for index in indices):
        raise UserError(
            f"--work_unit is {text!r}: give numbers from 0 to {num_units - 1}, such as 0,2-4"
        )
    return indices


def _train_here(units: Sequence["WorkUnit"], *, is_search: bool) -> None:
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.host_devices import make_cores_devices
    from charrnn_jax.sweeps.worker import run_units

    keep_compiled_programs()
    make_cores_devices()
    if is_search:
        from charrnn_jax.sweeps.search import run_trial

        for unit in units:
            if not unit.has_ended():
                run_trial(unit)
    elif not run_units(units):
        raise TrainingError("not all of these work units are done")


def _show(
    units: Sequence["WorkUnit"],
    jobs: Sequence["Job"],
    *,
    args: argparse.Namespace,
    overrides: list[str],
) -> None:
    """Prints each unit with the command that trains it alone, then the units of each process."""
    given = [f"--{name}={value}" for name in ("config", "workdir") if (value := vars(args)[name])]
    given += [f"--register={file}" for file in args.register]
    command = shlex.join(["charrnn", "sweep", *given, *overrides])
    for unit in units:
        show(f"{unit.index:4}  {unit.read_status()['status']:8}  {unit.name}")
        show(f"{'':16}{command} --work_unit={unit.index}")
    show(f"\n{len(jobs)} processes, each with the units:")
    for job in jobs:
        show(", ".join(str(unit.index) for unit in job.units))


def _sbatch_options(args: argparse.Namespace) -> dict[str, str | bool]:
    """--memory=8G --sbatch=exclusive -> {"mem": "8G", "exclusive": True}"""
    flags = {
        "partition": args.partition,
        "time": args.time,
        "mem": args.memory,
        "cpus-per-task": args.cpus_per_task,
        "gpus-per-node": args.gpus_per_task,  # a task has a node; old Slurms lack other options
    }
    options: dict[str, str | bool] = {name: str(value) for name, value in flags.items() if value}
    for text in args.sbatch or ():
        name, equals, value = text.partition("=")
        options[name.removeprefix("--")] = value if equals else True
    if args.launcher == "slurm":
        from charrnn_jax.sweeps.slurm import check_slurm

        check_slurm()
    elif options:
        raise UserError(f"{', '.join(options)}: only for Slurm, so give --launcher=slurm as well")
    return options


def _run_in_slurm(
    jobs: Sequence["Job"],
    tasks: dict[str, "Job"],
    *,
    num_at_once: int,
    options: dict[str, str | bool],
    table: "SweepTable",
) -> None:
    """Submits the jobs, then waits for them and for the tasks that Slurm already had."""
    from charrnn_jax.sweeps.slurm import submit, wait_for_tasks

    if tasks:
        show(f"Slurm already has {len(tasks)} tasks of this sweep; they continue")
    if jobs:
        tasks = tasks | submit(jobs, num_at_once=num_at_once, options=options, beside=tasks)
    if not tasks:
        return
    cancel = f"scancel {' '.join(sorted({task.partition('_')[0] for task in tasks}))}"
    show(f"{len(tasks)} tasks in Slurm; {cancel} cancels them")
    try:
        wait_for_tasks(tasks, table=table)
    except KeyboardInterrupt:
        show(f"The tasks continue in Slurm. The same command waits again; {cancel} cancels them")
        raise
