"""The processes of a job: which one is first, and how they agree.

All processes of a job run the same program, and all must take part in every computation on shared
arrays. Only the first process writes and prints. A single process is the first of one.
"""

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from charrnn_jax.errors import Interrupted, TrainingError, UserError
from charrnn_jax.messages import PROGRESS, show

T = TypeVar("T")


def join_processes(
    coordinator: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = 100,
) -> None:
    """Joins this process to a job of several. Call it before anything that uses a device.

    Args:
      coordinator: HOST:PORT of the first process; None: JAX finds it, and the two numbers below,
        from Slurm, a TPU pod or GKE.
      num_processes: number of processes in the job.
      process_id: number of this process, from 0.
      heartbeat_timeout_seconds: seconds until a killed process counts as lost. The others then
        abort, and the job has to be started again.

    Raises:
      UserError: the job or its other processes cannot be found.
    """
    # One program at a time: two programs that run at once could mix up their messages.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({' '.join(str(error).split())[:200]}): outside "
            "Slurm, TPU pods and GKE, give every process the same --coordinator=HOST:PORT and "
            "--num_processes=N, and its own --process_id=I"
        ) from error


@contextmanager
def one_fails_all_end() -> Iterator[None]:
    """Ends this process at once if it fails alone.

    A normal exit would wait for the other processes, which wait for this one. Once it is gone they
    abort, at the latest after the heartbeat timeout.
    """
    try:
        yield
    except (UserError, Interrupted):  # raised in all processes
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, KeyboardInterrupt):
            os._exit(128 + signal.SIGINT)
        if isinstance(error, SystemExit):  # another signal
            os._exit(error.code if isinstance(error.code, int) else 1)
        if isinstance(error, TrainingError):
            show(f"charrnn: error: {error}", to="stderr", flush=True)
        else:
            traceback.print_exc()
        if is_first_process():
            time.sleep(2)  # others may have the same error to print, and abort when this ends
        os._exit(TrainingError.exit_code)


def is_first_process() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def say_once(text: str) -> None:
    """Reports progress in the first process only."""
    if is_first_process():
        PROGRESS.info(text)


def from_first(function: Callable[[], T]) -> T:
    """Calls a function in the first process; all processes return its value or raise its error.

    The value must be picklable.
    """
    if jax.process_count() == 1:
        return function()
    outcome: tuple[Any, Exception | None] = None, None
    if is_first_process():
        try:
            outcome = function(), None
        except Exception as error:
            outcome = None, error
    content = np.frombuffer(pickle.dumps(outcome), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(content.size))
    content = multihost_utils.broadcast_one_to_all(np.resize(content, int(size)))
    value, error_there = pickle.loads(content.tobytes())
    if error_there:
        raise error_there
    return value


def first_then_others(function: Callable[[], T]) -> T:
    """Calls a function in every process and returns its value.

    The first process goes first, so that the others can use what it has cached.

    Raises:
      UserError: the function failed in another process.
    """
    if jax.process_count() == 1:
        return function()
    results: list[T] = []
    from_first(lambda: results.append(function()))
    own_error = None
    if not results:
        try:
            results.append(function())
        except Exception as error:
            own_error = error
    failed = multihost_utils.process_allgather(np.array(own_error is not None))
    if own_error:
        raise own_error
    if np.any(failed):
        raise UserError(f"process {np.argmax(failed)} of the job failed: see its output")
    return results[0]
