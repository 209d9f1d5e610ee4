"""The processes of a job: which one is first, and how they agree.

All processes of a job run the same program, and all must come to every computation on what they
share. Only the first writes and prints. Alone, a process is the first of one.
"""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from charrnn_jax.errors import Interrupted, TrainingError, UserError

T = TypeVar("T")


def join_processes(
    coordinator: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = 100,
) -> None:
    """Makes this process one of a job of several. Must come before anything that uses a device.

    Args:
      coordinator: HOST:PORT of the first process; None: JAX finds all three (Slurm, TPU, GKE).
      num_processes: of the job.
      process_id: of this one, from 0.
      heartbeat_timeout_seconds: after which a process that was killed is missed; the others then
        abort, and the job has to be started again.

    Raises:
      UserError: the others, or the job, cannot be found.
    """
    # In order: two programs at once could mix up what they send.
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
            f"cannot join the other processes ({' '.join(str(error).split())[:200]}): outside of "
            "Slurm, TPU pods and GKE give all of them the same --coordinator=HOST:PORT and "
            "--num_processes=N, and each its --process_id=I"
        ) from error


@contextmanager
def one_fails_all_end() -> Iterator[None]:
    """Ends this process at once if it fails alone: to leave in order it would wait for the others,
    which wait for it. When it is gone they abort; at the latest after the heartbeat timeout."""
    try:
        yield
    except (UserError, Interrupted):  # come to all of them
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, TrainingError):
            print(f"charrnn: error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        if is_first_process():
            time.sleep(2)  # the others may have the same to say, and abort without the first
        os._exit(TrainingError.exit_code)


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def say_once(text: str) -> None:
    """Prints, in the first process."""
    if is_first_process():
        print(text)


def from_first(function: Callable[[], T]) -> T:
    """Calls a function in the first process; returns its (picklable) value, or raises, in all."""
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
    """Calls a function in every process, first in the first: what it caches is there for the rest.

    Raises:
      UserError: it failed in another process.
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
        raise UserError(f"process {np.argmax(failed)} of the job failed: see what it says")
    return results[0]
