"""Runs the jobs of a sweep on this machine, in worker processes with their own cores or GPU."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from charrnn_jax.errors import Interrupted
from charrnn_jax.sweeps.jobs import Job
from charrnn_jax.sweeps.table import SweepTable
from charrnn_jax.training.interrupt import InterruptRequest

_POLL_SECONDS = 0.5
_WORKER = "CHARRNN_WORKER"  # environment variable that a parent sets for its worker, JSON
_PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>


@dataclass(frozen=True)
class Worker:
    """The resources of one worker process.

    Attributes:
      cores: CPU cores that it may use; empty: any.
      environment: environment variables that choose its GPU.
    """

    cores: frozenset[int]
    environment: dict[str, str]

    def start(self, job: Job) -> subprocess.Popen[bytes]:
        """Starts the process of a job."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        set_up = {"cores": sorted(self.cores), "parent": os.getpid()}
        with open(job.log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                job.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, _WORKER: json.dumps(set_up)},
                start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
            )


def set_up_worker() -> None:
    """Applies the settings of `Worker.start` in a worker process; call it before anything else."""
    if (wanted := os.environ.pop(_WORKER, None)) is None:
        return
    set_up = json.loads(wanted)
    if set_up["cores"]:
        os.sched_setaffinity(0, set_up["cores"])
    if sys.platform == "linux":  # if the parent is killed, the worker saves and ends as well
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != set_up["parent"]:
            sys.exit(128 + signal.SIGTERM)


def make_workers(num_workers: int | None = None) -> list[Worker]:
    """Returns the workers of this machine: one for each GPU, or one for each CPU core.

    Args:
      num_workers: number of workers to make instead.
    """
    backend, num_devices = _devices()
    if backend == "cpu":
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        count = num_workers or len(cores) or os.cpu_count() or 1
        return [Worker(frozenset(cores[i % max(len(cores), 1) :: count]), {}) for i in range(count)]
    if backend == "gpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        cards = visible if visible != [""] else [str(card) for card in range(num_devices)]
        cards = cards[: num_workers or None]
        return [Worker(frozenset(), {"CUDA_VISIBLE_DEVICES": card}) for card in cards]
    return [Worker(frozenset(), {})]  # only one process can use the chips of a TPU


def _devices() -> tuple[str, int]:
    """Asks another process for the devices: this one must not take the memory of the GPUs."""
    code = "import jax, json; print(json.dumps([jax.default_backend(), jax.local_device_count()]))"
    answer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    backend, num_devices = json.loads(answer.stdout.splitlines()[-1])
    return backend, num_devices


def run_jobs(jobs: Iterable[Job], workers: Sequence[Worker], *, table: SweepTable) -> None:
    """Runs every job in a process of its own, as many at once as there are workers.

    Args:
      jobs: jobs to run; the next one is taken when a worker is free.
      workers: workers, each of which runs one job at a time.
      table: table that shows the progress of the units.

    Raises:
      Interrupted: a signal arrived; it was passed on, and the running units were saved.
    """
    waiting, idle = iter(jobs), list(workers)
    running: list[tuple[Worker, Job, subprocess.Popen[bytes]]] = []
    passed_on = False
    with InterruptRequest() as interrupt:
        try:
            while True:
                while idle and not interrupt.signal_number and (job := next(waiting, None)):
                    worker = idle.pop(0)
                    running.append((worker, job, worker.start(job)))
                if not running:
                    break
                if interrupt.signal_number and not passed_on:
                    passed_on = True
                    for _, _, process in running:
                        process.send_signal(interrupt.signal_number)
                time.sleep(_POLL_SECONDS)
                table.update()
                for worker, job, process in [row for row in running if row[2].poll() is not None]:
                    running.remove((worker, job, process))
                    idle.append(worker)
                    if not interrupt.signal_number:
                        _note_death(job, process.returncode)
        finally:
            for _, _, process in running:
                process.kill()
    table.update()
    if interrupt.signal_number:
        raise Interrupted(interrupt.signal_number, 0)


def _note_death(job: Job, return_code: int) -> None:
    """Marks the unfinished units of a process that was killed or could not start as failed."""
    for unit in job.units:
        if unit.read_status()["status"] in ("running", "waiting"):
            message = f"its process ended with exit code {return_code}; see {job.log}"
            unit.write_status("failed", message=message)
