"""Training on many devices and in many processes: how arrays are split, and how processes agree.

The devices form a mesh with two axes. Devices along "data" share a batch: each has its rows of the
batch and of the carry. Devices along "model" share the hidden units: each has its columns of the
recurrent layers' parameters, of their moments in the optimizer, and of the carry. Every device has
everything else. The compiler adds the communication between devices, so a train step does not know
how many there are.

All processes of a job run the same program, see `processes`.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import UserError
from charrnn_jax.processes import say_once
from charrnn_jax.training.train_step import TrainState


def make_mesh(
    *, data_devices: int, model_devices: int, batch_size: int, hidden_size: int, cores: int = 1
) -> Mesh:
    """Arranges the devices of all processes; those that share hidden units are next to each other.

    Args:
      data_devices: number of devices that share a batch; 0: as many accelerators as can share it
        evenly, or on CPUs as many of `cores`.
      model_devices: number of devices that share the hidden units.
      batch_size: B, over all devices.
      hidden_size: H, units of each recurrent layer.
      cores: most devices that share a batch if they are CPU cores and `data_devices` is 0, in all
        processes; at least one per process.

    Returns:
      A mesh with the axes "data" and "model".

    Raises:
      UserError: there are too few devices, or they cannot share B or H evenly.
    """
    num_processes = jax.process_count()
    there = min(Counter(device.process_index for device in jax.devices()).values())
    if hidden_size % model_devices:
        raise UserError(
            f"config.model.hidden_size is {hidden_size}, which {model_devices} devices cannot "
            "share evenly: set another --config.train.model_devices"
        )
    most = there // model_devices  # devices of a process, along "data"
    each, rest = divmod(data_devices, num_processes)
    if each > most or rest or not most:
        processes = (
            f" in each of {num_processes} processes with equal shares" if num_processes > 1 else ""
        )
        raise UserError(
            f"--config.train.data_devices={data_devices} times "
            f"--config.train.model_devices={model_devices} does not fit the number of devices, "
            f"which is {there}{processes}: set other values"
        )
    if not each:
        if jax.default_backend() == "cpu":
            most = max(1, min(most, cores // num_processes))
        each = max(
            (n for n in range(1, most + 1) if not batch_size % (n * num_processes)), default=1
        )
        if each < most:
            say_once(
                f"Using {each * num_processes * model_devices} of {there * num_processes} devices, "
                f"since more cannot share --config.data.batch_size={batch_size} evenly"
            )
    if batch_size % (each * num_processes):
        raise UserError(
            f"config.data.batch_size is {batch_size}, which {each * num_processes} devices cannot "
            "share evenly: set another --config.data.batch_size or --config.train.data_devices"
        )
    # Sorted by process, so that each process has consecutive rows of a batch.
    devices = [
        jax.local_devices(process_index=process)[: each * model_devices]
        for process in range(num_processes)
    ]
    return Mesh(np.array(devices).reshape(-1, model_devices), ("data", "model"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has as a whole."""
    return NamedSharding(mesh, P())


def own_rows(batch_size: int) -> slice:
    """Returns the rows of a batch that are on the devices of this process."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Returns the sharding of each array of a state, as a tree of the same structure.

    The arrays may have more axes, before those of the model.
    """
    hidden_size = state.model.hidden_size
    own = jax.tree.leaves(jax.eval_shape(lambda: state.model.initialize_carry(1)))
    carry_axes = iter([leaf.ndim for leaf in own])

    def sharding(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        names = [getattr(entry, "name", getattr(entry, "key", None)) for entry in path]
        axes: tuple[str | None, ...] = ()
        if names[0] == "carry":
            num_axes = next(carry_axes)  # [B, H], or another shape that begins with B
            units = ("model",) if num_axes > 1 and leaf.shape[-1] == hidden_size else ()
            axes = ("data", *[None] * (num_axes - 1 - len(units)), *units)
        elif "cell" in names and leaf.shape[-1:] == (hidden_size,):
            axes = ("model",)  # kernels [E or H, H] and biases [H], and their moments
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - len(axes)), *axes))

    return jax.tree_util.tree_map_with_path(sharding, state)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Places a state, which is the same in every process, as `state_shardings` says."""
    if jax.process_count() == 1:
        return jax.device_put(state, state_shardings(state, mesh))

    def place(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding))
        content = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, content.__getitem__)

    return jax.tree.map(place, state, state_shardings(state, mesh))


def shape_of_batch(mesh: Mesh, batch_size: int, sequence_length: int) -> Any:
    """Returns the shapes of a batch [B, T] over all processes, to trace a train step with."""
    sharding = NamedSharding(mesh, P("data"))
    ids: Any = jax.ShapeDtypeStruct((batch_size, sequence_length), np.int32, sharding=sharding)
    resets: Any = jax.ShapeDtypeStruct((batch_size,), np.bool_, sharding=sharding)
    return Batch(inputs=ids, targets=ids, resets=resets)


def place_rows(where: Any, mesh: Mesh) -> Any:
    """Splits arrays [N, B, ...] along "data"; each process gives its own rows. Returns at once."""
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


class Agreement:
    """Turns a number that each process has into one of all: the largest, after the same call.

    The numbers are compared on the devices and read at the next call, so that no process waits.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, P("data"))
        self._num_rows = mesh.shape["data"] // jax.process_count()
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._pending: Any = 0

    def __call__(self, number: int) -> int:
        """Takes the number of this process, from 0; returns the one agreed on in the last call."""
        if jax.process_count() == 1:
            return number
        own = np.full(self._num_rows, number, np.int32)
        received = jax.make_array_from_process_local_data(self._sharding, own)
        last, self._pending = self._pending, self._largest(received)
        return int(last)
