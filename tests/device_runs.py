"""A few steps of training on a mesh, for tests; as a program it does them on eight devices.

python tests/device_runs.py CASES, where CASES is JSON: a list of [case, [[data, model], ...]].
Prints as JSON, for each, the largest differences from one device.
"""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax

from charrnn_jax.config import default_config
from charrnn_jax.data.batches import make_batches
from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import make_model
from charrnn_jax.models.regularisers.activation_penalty import ActivationPenalty
from charrnn_jax.models.regularisers.temporal_penalty import TemporalPenalty
from charrnn_jax.training.devices import make_mesh, place_rows, place_state, replicated
from charrnn_jax.training.devices import state_shardings as shardings_of
from charrnn_jax.training.dispatch import make_run_steps
from charrnn_jax.training.train_step import TrainState, create_train_state, train_step
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.metadata import CheckpointMetadata

BATCH_SIZE, LENGTH, HIDDEN_SIZE, NUM_STEPS = 8, 6, 16, 3
TOKENS = np.random.default_rng(0).integers(1, 20, 2000)
BATCHES = make_batches(
    TOKENS, batching="lanes", batch_size=BATCH_SIZE, sequence_length=LENGTH, seed=0
)


def new_state(
    mesh, *, cell: str, implementation: str, dropout: float, optimizer: str = "adam"
) -> TrainState:
    config = default_config().model
    config.cell, config.implementation = cell, implementation
    config.embedding_size, config.hidden_size = 8, HIDDEN_SIZE
    config.dropout = config.input_dropout = dropout
    config.embedding_dropout = dropout
    config.weight_dropout = dropout if CELLS[cell].recurrent else 0.0
    state = create_train_state(
        make_model(config, vocabulary_size=20),
        optax.chain(optax.clip_by_global_norm(1.0), getattr(optax, optimizer)(1e-2)),
        seed=0,
        batch_size=BATCH_SIZE,
        regularisers=(ActivationPenalty(dropout), TemporalPenalty(dropout)),
    )
    return place_state(state, mesh)


def mesh_of(data: int, model: int):
    return make_mesh(
        data_devices=data, model_devices=model, batch_size=BATCH_SIZE, hidden_size=HIDDEN_SIZE
    )


def call_on(data: int, model: int, **case):
    """Returns the program of a few steps, and what it is called with."""
    mesh = mesh_of(data, model)
    state = new_state(mesh, **case)
    run_steps = make_run_steps(
        train_step,
        sequence_length=LENGTH,
        num_steps=NUM_STEPS,
        shardings=shardings_of(state, mesh),
    )
    where = (
        np.stack([BATCHES.starts(step) for step in range(NUM_STEPS)]).astype(np.int32),
        np.stack([BATCHES.resets(step) for step in range(NUM_STEPS)]),
    )
    tokens = jax.device_put(TOKENS, replicated(mesh))
    return run_steps, (state, tokens, place_rows(where, mesh), np.int32(NUM_STEPS))


def train_on(data: int, model: int, **case):
    """Returns (losses, state) behind a call, and checks where the state is."""
    run_steps, arguments = call_on(data, model, **case)
    state, metrics = run_steps(*arguments)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings_of(state, mesh_of(data, model))
    return metrics["loss"].total, state


def arrays(state: TrainState):
    return jax.device_get(jax.tree.leaves((state.params, state.opt_state, state.carry)))


def differences(data: int, model: int, *, losses, state: TrainState, **case) -> tuple[float, float]:
    """Returns the largest of the losses, relative, and of all arrays, relative to 1 + |value|."""
    other_losses, other = train_on(data, model, **case)
    of_losses = np.abs(np.asarray(other_losses) / np.asarray(losses) - 1).max()
    pairs = zip(arrays(other), arrays(state), strict=True)
    of_arrays = max(np.max(np.abs(a - b) / (1 + np.abs(b))) for a, b in pairs)
    return float(of_losses), float(of_arrays)


def metadata_of(step: int) -> CheckpointMetadata:
    return CheckpointMetadata(step, {}, {}, CorpusIdentity("a text", "0", 9))


def filled(state: TrainState) -> TrainState:
    """The state with random numbers in every array of floats, each where it was."""
    rng = np.random.default_rng(0)

    def fill(x: jax.Array) -> jax.Array:
        if not jax.numpy.issubdtype(x.dtype, np.floating):
            return x
        return jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)

    return jax.tree.map(fill, state)


def restored_bitwise(folder: Path, meshes) -> bool:
    """Saves a state on the first mesh and restores it on each of the others in turn."""
    case = {"cell": "lstm", "implementation": "fused", "dropout": 0.0}
    state = filled(new_state(mesh_of(*meshes[0]), **case))
    for step, (_, there) in enumerate(pairwise(meshes)):
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(*state.to_trees(), metadata=metadata_of(step))
        template = new_state(mesh_of(*there), **case)
        with Checkpoints(folder) as checkpoints:
            params, rest, _ = checkpoints.restore(*template.to_trees())
            restored = template.with_trees(params, rest)
        if jax.tree.map(lambda x: x.sharding, restored) != shardings_of(template, mesh_of(*there)):
            return False
        pairs = zip(arrays(restored), arrays(state), strict=True)
        if not all(a.tobytes() == b.tobytes() for a, b in pairs):
            return False
        state = restored
    return True


if __name__ == "__main__":
    answers = []
    for case, meshes in json.loads(sys.argv[1]):
        losses, state = train_on(1, 1, **case)
        answers += [differences(*mesh, losses=losses, state=state, **case) for mesh in meshes]
    print(json.dumps(answers))
    with TemporaryDirectory() as folder:
        meshes = [(4, 1), (1, 1), (4, 1), (2, 1), (4, 2), (1, 1)]
        print(json.dumps(restored_bitwise(Path(folder), meshes)))
