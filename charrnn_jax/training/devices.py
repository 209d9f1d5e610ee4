"""Many devices and many processes: who holds which part of what, and how they agree.

The only place that puts arrays on devices.

The devices form a mesh with two axes. Those along "data" share a batch: each has its rows of the
batch and of the carry. Those along "model" share the hidden units: each has its columns of the
recurrent layers' parameters, of their moments in the optimizer, and of the carry. All else is
everywhere. What has to be sent between devices is the compiler's business: a train step does not
know on how many devices it runs.

The processes of a job all run the same program and must all come to every computation on what they
share. Only the first writes and prints.
"""

import os
import pickle
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import Interrupted, TrainingError, UserError
from charrnn_jax.training.train_step import TrainState

T = TypeVar("T")


def make_mesh(*, data_devices: int, model_devices: int, batch_size: int, hidden_size: int) -> Mesh:
    """Arranges the devices of all processes, those that share hidden units next to each other.

    Args:
      data_devices: that share a batch; 0: all accelerators, or of a CPU one, that divide it.
      model_devices: that share the hidden units.
      batch_size: B, of all devices together.
      hidden_size: H.

    Returns:
      A mesh with the axes "data" and "model".

    Raises:
      UserError: there are not so many devices, or they cannot share B or H evenly.
    """
    num_processes = jax.process_count()
    there = min(Counter(device.process_index for device in jax.devices()).values())
    if hidden_size % model_devices:
        raise UserError(
            f"config.model.hidden_size is {hidden_size}, which {model_devices} devices cannot "
            "share evenly: set another --config.train.model_devices"
        )
    most = there // model_devices  # of a process, along "data"
    each, rest = divmod(data_devices, num_processes)
    if each > most or rest or not most:
        processes = f" a process, of {num_processes} processes" if num_processes > 1 else ""
        raise UserError(
            f"there are {there} devices{processes}: too few, or not evenly many, for "
            f"--config.train.data_devices={data_devices} times "
            f"--config.train.model_devices={model_devices}"
        )
    if not each:
        most = 1 if jax.default_backend() == "cpu" else most
        each = max(
            (n for n in range(1, most + 1) if not batch_size % (n * num_processes)), default=1
        )
        if each < most:
            say_once(
                f"{each * num_processes * model_devices} of {there * num_processes} devices are "
                f"used: more cannot share --config.data.batch_size={batch_size} evenly"
            )
    if batch_size % (each * num_processes):
        raise UserError(
            f"config.data.batch_size is {batch_size}, which {each * num_processes} devices cannot "
            "share evenly: set another, or another --config.train.data_devices"
        )
    # Sorted by process, so that each has consecutive rows of a batch.
    devices = [
        jax.local_devices(process_index=process)[: each * model_devices]
        for process in range(num_processes)
    ]
    return Mesh(np.array(devices).reshape(-1, model_devices), ("data", "model"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is whole on every device."""
    return NamedSharding(mesh, P())


def own_rows(batch_size: int) -> slice:
    """Returns the rows of a batch that lie on the devices of this process."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Returns where each array of a state belongs, as a tree of the same structure.

    Only names and the last axes count, so that there may be more axes before them.
    """

    def sharding(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        names = [getattr(entry, "name", getattr(entry, "key", None)) for entry in path]
        axes: tuple[str, ...] = ()
        if names[0] == "carry":
            axes = ("data", "model")  # [B, H]
        elif "cell" in names and leaf.shape[-1:] == (state.model.hidden_size,):
            axes = ("model",)  # kernels [E or H, H] and biases [H], and their moments
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - len(axes)), *axes))

    return jax.tree_util.tree_map_with_path(sharding, state)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Puts a state, the same in every process, where `state_shardings` says."""
    if jax.process_count() == 1:
        return jax.device_put(state, state_shardings(state, mesh))

    def place(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding))
        content = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, content.__getitem__)

    return jax.tree.map(place, state, state_shardings(state, mesh))


def shape_of_batch(mesh: Mesh, batch_size: int, sequence_length: int) -> Any:
    """Returns what a train step is traced with: the batch [B, T] of all processes, less its ids."""
    sharding = NamedSharding(mesh, P("data"))
    ids: Any = jax.ShapeDtypeStruct((batch_size, sequence_length), np.int32, sharding=sharding)
    return Batch(inputs=ids, targets=ids)


def place_rows(where: Any, mesh: Mesh) -> Any:
    """Splits [N, B, ...] over "data"; each process gives its own rows. Returns at once."""
    sharding = NamedSharding(mesh, P(None, "data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), where)


def gather(tree: Any) -> Any:
    """Returns whole arrays on the first device of this process. All processes must call it."""
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding) and sharding.mesh.shape["model"] > 1:
        tree = _make_whole(sharding.mesh)(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


@cache
def _make_whole(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


# --- processes ----------------------------------------------------------------------------------


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


class SignalAgreement:
    """A signal that came to one process becomes a decision of all, behind the same call.

    What each has received is compared on the devices and read one call later, so nobody waits.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, P("data"))
        self._num_rows = mesh.shape["data"] // jax.process_count()
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._pending: Any = 0

    def __call__(self, signal_number: int | None) -> int | None:
        """Gives what this process has received by now; returns what all know of the last call."""
        if jax.process_count() == 1:
            return signal_number
        own = np.full(self._num_rows, signal_number or 0, np.int32)
        received = jax.make_array_from_process_local_data(self._sharding, own)
        last, self._pending = self._pending, self._largest(received)
        return int(last) or None
