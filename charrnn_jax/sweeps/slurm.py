"""Runs the jobs of a sweep on a Slurm cluster, as the tasks of one array job made by submitit.

A task runs the command of its job. Before a time limit, a preemption or a requeue, Slurm sends
SIGTERM, which reaches the worker directly; the worker saves and ends. The task then requeues itself
unless Slurm does so, and resumes from the checkpoint when it starts again.

`slurm/` in the sweep's folder holds submitit's files, Slurm's own logs, and `tasks.json`, which
lists the units of each task. If the command is started again, it reads the existing tasks from that
file and waits for them.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from charrnn_jax.errors import UserError, shortened
from charrnn_jax.files import replacing
from charrnn_jax.messages import show
from charrnn_jax.reading import read_json
from charrnn_jax.sweeps.jobs import Job
from charrnn_jax.sweeps.table import SweepTable
from charrnn_jax.sweeps.units import WorkUnit

_Index = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}\Z")]
_TASKS_FILE = "slurm/tasks.json"
_SECONDS_TO_SAVE = 120  # from the signal to the time limit; Slurm may send it a minute earlier
_MOST_RESTARTS = 100  # a task that makes no progress must not restart for ever
_ENDED = (  # states after which a task does not run again; "gone": Slurm no longer lists it
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT", "gone"),
)


def check_slurm() -> None:
    """Raises UserError if there is no Slurm here, or no submitit."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "--launcher=slurm needs sbatch on the PATH: start it on a login node of the cluster"
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--launcher=slurm needs submitit: pip install 'charrnn_jax[slurm]'"
        ) from error


def find_tasks(units: Sequence[WorkUnit], *, workdir: Path) -> dict[str, Job]:
    """Returns the tasks of this sweep that Slurm still has, such as {"12_0": job}.

    Raises:
      UserError: Slurm does not answer, or a task names a unit by an index that the unit no longer
        has in the sweep.
    """
    file = workdir / _TASKS_FILE
    if not file.is_file() or shutil.which("squeue") is None:
        return {}
    states = _read_queue()
    jobs = {}
    remedy = "delete it when no task of this sweep is left in Slurm"
    for task, names in read_json(file, dict[str, dict[_Index, str]], remedy=remedy).items():
        if states.get(task, "gone") in _ENDED:
            continue
        for index, name in names.items():
            if int(index) >= len(units) or units[int(index)].name != name:
                task, name = shortened(task), shortened(name)
                raise UserError(
                    f"Slurm task {task} trains {name} as unit {index}, which get_hyper has moved "
                    f"or removed: wait until the task has ended, or cancel it with scancel {task}"
                )
        jobs[task] = Job(tuple(units[int(index)] for index in names), workdir)
    return jobs


def submit(
    jobs: Sequence[Job],
    *,
    num_at_once: int,
    options: Mapping[str, str | bool],
    beside: Mapping[str, Job],
) -> dict[str, Job]:
    """Submits the jobs as one array job.

    Args:
      jobs: jobs to submit, at least one.
      num_at_once: number of tasks that may run at the same time.
      options: options of sbatch, such as {"partition": "gpu", "exclusive": True}; resources are for
        each job.
      beside: tasks of the sweep that Slurm already has.

    Returns:
      The new tasks, such as {"12_0": job}.

    Raises:
      UserError: sbatch refused the job.
    """
    import submitit

    workdir = jobs[0].workdir
    executor = submitit.SlurmExecutor(workdir / "slurm")
    cpus = options.get("cpus-per-task")
    executor.update_parameters(
        job_name=f"charrnn-{workdir.name}",
        array_parallelism=num_at_once,
        stderr_to_stdout=True,
        time=None,  # the partition's, unless the options set it; submitit's would be 5 minutes
        wckey=None,
        # Since Slurm 22.05, srun does not inherit this option of sbatch.
        srun_args=[f"--cpus-per-task={cpus}"] if cpus else None,
        additional_parameters={
            "requeue": True,
            "signal": f"TERM@{_SECONDS_TO_SAVE}",
            **options,
        },
    )
    jobs[0].log.parent.mkdir(parents=True, exist_ok=True)
    messages = io.StringIO()  # what sbatch prints
    try:
        with contextlib.redirect_stderr(messages), executor.batch():
            submitted = [executor.submit(run_task, job.command(), job.log) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        lines = (str(error).strip() or messages.getvalue().strip()).splitlines()
        raise UserError(f"Slurm refused the job: {lines[-1] if lines else error}") from error
    tasks = {task.job_id: job for task, job in zip(submitted, jobs, strict=True)}
    names = {
        task: {str(unit.index): unit.name for unit in job.units}
        for task, job in {**beside, **tasks}.items()
    }
    with replacing(workdir / _TASKS_FILE) as partial:
        partial.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    return tasks


def run_task(command: Sequence[str], log: Path) -> None:
    """Runs the command of a job, in a task of the array.

    Slurm sends SIGTERM to all processes of a task; submitit ignores it in this one. If Slurm still
    lists the task as running after that, its time limit or a preemption is near, and the task must
    requeue itself because nothing else does. A cancelled task is no longer listed as running.
    """
    import submitit

    with open(log, "a", encoding="utf-8") as out:
        worker = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    show(f"the worker ended with exit code {worker.returncode}", flush=True)  # to Slurm's own log
    task = submitit.JobEnvironment().job_id
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    was_told_to_end = worker.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    if was_told_to_end and restarts < _MOST_RESTARTS and _read_queue().get(task) == "RUNNING":
        subprocess.run(["scontrol", "requeue", task], check=True)
    sys.exit(worker.returncode)


def wait_for_tasks(tasks: Mapping[str, Job], *, table: SweepTable) -> None:
    """Shows the table until the tasks have ended, and marks units left unfinished as failed.

    The tasks continue if this is interrupted.
    """
    started = time.monotonic()
    waiting = dict(tasks)
    while waiting:
        with contextlib.suppress(UserError):  # the controller is busy or restarting
            states = _read_queue()
            for task in list(waiting):
                state = states.get(task, "gone")
                if state in _ENDED:
                    _note_end(waiting.pop(task), task=task, state=state)
        # Frequent queries are a burden on large clusters.
        next_look = time.monotonic() + min(2 + (time.monotonic() - started) / 20, 30)
        while waiting and time.monotonic() < next_look:
            table.update()
            time.sleep(1)
    table.update()


def _note_end(job: Job, *, task: str, state: str) -> None:
    log = job.workdir / "slurm" / f"{task}_0_log.out"
    message = f"its Slurm task {task} ended as {state}; see {job.log} and {log}"
    for unit in job.units:
        if unit.read_status()["status"] in ("waiting", "running"):
            unit.write_status("failed", message=message)


def _read_queue() -> dict[str, str]:
    """Returns the states of the user's tasks, such as {"12_0": "RUNNING"}.

    Tasks that ended in the last few minutes are included. The states come from squeue, because not
    every cluster keeps the accounting records that sacct reads.
    """
    command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i %T"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"Slurm does not answer, try again later: {last}")
    return dict(line.split() for line in answer.stdout.splitlines())
