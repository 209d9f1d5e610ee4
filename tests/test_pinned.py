"""One step of every cell, pinned: nothing in it may change unnoticed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import EVERY_CELL

from charrnn_jax.data.batches import Batch
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.training.train_step import create_train_state, train_step

# cell -> (loss in nats/char, norm of the gradient), of two layers on one fixed batch
PINNED = {
    "gru": (2.2492679, 0.37467727),
    "lstm": (2.2831601, 0.30950797),
    "rnn": (2.2571564, 0.49061135),
    "mogrifier_lstm": (2.2736602, 0.2988747),
    "slstm": (2.2858113, 0.3379358),
    "layer_norm_gru": (2.2579335, 1.8008692),
    "layer_norm_lstm": (2.3185303, 0.77614775),
    "min_gru": (2.676852, 1.066811),
    "min_lstm": (2.7357054, 1.1561964),
    "rg_lru": (2.272353, 0.7333681),
}
WHEN_TO_CHANGE = (
    "a step of {cell} has changed: loss {loss:.7f}, gradient norm {norm:.7f}, pinned {pinned}. "
    "That is legitimate only if you meant to change the equations of the cell, the layout of the "
    "model or the loss. Old checkpoints then mean something else: say so in the changelog, and pin "
    "the new numbers. If you only moved something or made it faster, it is a mistake."
)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_one_step_is_what_it_was(cell: str) -> None:
    """The parameters are waves, not draws, so that no version of JAX has others."""
    model = CharRNN(11, 6, 8, num_layers=2, cell=cell)
    state = create_train_state(model, optax.sgd(0.1), seed=0, batch_size=3)
    leaves, structure = jax.tree.flatten(state.params)
    waves = [
        0.5 * np.sin(np.arange(leaf.size) * 1.7 + index).reshape(leaf.shape).astype(np.float32)
        for index, leaf in enumerate(leaves)
    ]
    state = state.replace(params=jax.tree.unflatten(structure, map(jnp.asarray, waves)))
    tokens = (np.arange(3 * 8).reshape(3, 8) ** 2 % 11).astype(np.int32)
    _, metrics = jax.jit(train_step)(state, Batch(tokens[:, :-1], tokens[:, 1:]))
    loss, norm = metrics["loss"].nats_per_char, float(metrics["gradient_norm"])
    np.testing.assert_allclose(
        (loss, norm),
        PINNED[cell],
        rtol=1e-5,
        err_msg=WHEN_TO_CHANGE.format(cell=cell, loss=loss, norm=norm, pinned=PINNED[cell]),
    )
