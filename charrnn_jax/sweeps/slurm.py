"""Runs the jobs of a sweep on a Slurm cluster: tasks of one array job, which submitit submits.

A task runs the command of its job. The SIGTERM that Slurm sends ahead of a time limit, a preemption
or a requeue reaches the worker itself, which saves and ends; the task then goes back into the queue
by itself unless Slurm sees to that, and resumes from the checkpoint when it starts again.

`slurm/` in the sweep's folder holds submitit's files, Slurm's own logs, and `tasks.json`: which
units the tasks train. By it, starting the command again waits for the tasks that are there.
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

from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.sweeps.jobs import Job
from charrnn_jax.sweeps.table import SweepTable
from charrnn_jax.sweeps.units import WorkUnit

_TASKS_FILE = "slurm/tasks.json"
_SECONDS_TO_SAVE = 120  # from the signal to the time limit; Slurm may send it a minute earlier
_MOST_RESTARTS = 100  # a task that never gets anywhere must not go round for ever
_ENDED = (  # states after which a task does not run again; "gone": Slurm has forgotten it
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
    """Returns the tasks of this sweep that Slurm still has, {"12_0": job}.

    Raises:
      UserError: Slurm does not answer, or one of them is to train a unit that has got another
        place in the sweep, by which its command names it.
    """
    file = workdir / _TASKS_FILE
    if not file.is_file() or shutil.which("squeue") is None:
        return {}
    states = _read_queue()
    jobs = {}
    for task, names in json.loads(file.read_text(encoding="utf-8")).items():
        if states.get(task, "gone") in _ENDED:
            continue
        for index, name in names.items():
            if int(index) >= len(units) or units[int(index)].name != name:
                raise UserError(
                    f"Slurm task {task} is to train {name} as unit {index}, which get_hyper has "
                    f"moved: wait until it has ended, or cancel it with scancel {task}"
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
      jobs: at least one.
      num_at_once: tasks that may run at the same time.
      options: of sbatch, {"partition": "gpu", "exclusive": True}; the resources are those of a job.
      beside: tasks that Slurm has already.

    Returns:
      Its tasks, {"12_0": job}.

    Raises:
      UserError: sbatch refused.
    """
    import submitit

    workdir = jobs[0].workdir
    executor = submitit.SlurmExecutor(workdir / "slurm")
    cpus = options.get("cpus-per-task")
    executor.update_parameters(
        job_name=f"charrnn-{workdir.name}",
        array_parallelism=num_at_once,
        stderr_to_stdout=True,
        time=None,  # the partition's, if the options say nothing; submitit would say 5 minutes
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
    messages = io.StringIO()  # those of sbatch
    try:
        with contextlib.redirect_stderr(messages), executor.batch():
            submitted = [executor.submit(run_task, job.command(), job.log) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        lines = (str(error).strip() or messages.getvalue().strip()).splitlines()
        raise UserError(f"Slurm did not take the job: {lines[-1] if lines else error}") from error
    tasks = {task.job_id: job for task, job in zip(submitted, jobs, strict=True)}
    names = {
        task: {str(unit.index): unit.name for unit in job.units}
        for task, job in {**beside, **tasks}.items()
    }
    with replacing(workdir / _TASKS_FILE) as partial:
        partial.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    return tasks


def run_task(command: Sequence[str], log: Path) -> None:
    """Runs the command of a job; this is what a task of the array does.

    Slurm sends SIGTERM to all processes of a task; submitit ignores it in this one. If Slurm still
    lists the task as running after that, its time, or its grace before a preemption, is running
    out: it must requeue itself, for nothing else would. A cancelled task is no longer listed.
    """
    import submitit

    with open(log, "a", encoding="utf-8") as out:
        worker = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    print(f"the worker ended with {worker.returncode}", flush=True)  # into Slurm's own log
    task = submitit.JobEnvironment().job_id
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    was_told_to_end = worker.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    if was_told_to_end and restarts < _MOST_RESTARTS and _read_queue().get(task) == "RUNNING":
        subprocess.run(["scontrol", "requeue", task], check=True)
    sys.exit(worker.returncode)


def wait_for_tasks(tasks: Mapping[str, Job], *, table: SweepTable) -> None:
    """Shows the table until the tasks have ended; a unit that its task left unfinished has failed.

    The tasks continue if this is interrupted.
    """
    started = time.monotonic()
    waiting = dict(tasks)
    while waiting:
        with contextlib.suppress(UserError):  # the controller is busy, or starts again
            states = _read_queue()
            for task in list(waiting):
                state = states.get(task, "gone")
                if state in _ENDED:
                    _note_end(waiting.pop(task), task=task, state=state)
        # Large clusters mind being asked often.
        next_look = time.monotonic() + min(2 + (time.monotonic() - started) / 20, 30)
        while waiting and time.monotonic() < next_look:
            table.update()
            time.sleep(1)
    table.update()


def _note_end(job: Job, *, task: str, state: str) -> None:
    log = job.workdir / "slurm" / f"{task}_0_log.out"
    message = f"its Slurm task {task} is {state}; see {job.log} and {log}"
    for unit in job.units:
        if unit.read_status()["status"] in ("waiting", "running"):
            unit.write_status("failed", message=message)


def _read_queue() -> dict[str, str]:
    """Asks Slurm for the user's tasks, {"12_0": "RUNNING"}; for some minutes ended ones are there.

    squeue, for not every cluster keeps the accounts that sacct reads.
    """
    command = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i %T"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"Slurm does not answer, try again later: {last}")
    return dict(line.split() for line in answer.stdout.splitlines())
