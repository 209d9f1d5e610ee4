"""The Mogrifier LSTM beside the LSTM; `test_cells` has its equations."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import E, H, forward, make

from charrnn_jax.models.cells import CELLS

CELL = "mogrifier_lstm"


def test_without_weights_in_its_rounds_it_is_the_lstm() -> None:
    model, params, carry, tokens = make("lstm", num_layers=2)
    zeros = jax.tree.map(jnp.zeros_like, make(CELL, num_layers=2)[1])
    with_rounds = {
        name: {"cell": {**zeros[name]["cell"], **of["cell"]}} if "cell" in of else of
        for name, of in params.items()
    }
    expected = forward(params, carry, tokens, model=model)
    ours = forward(with_rounds, carry, tokens, model=model.clone(cell=CELL))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected
    )


def test_number_of_its_parameters_is_the_lstms_and_that_of_five_dense_layers() -> None:
    sizes = {}
    for cell in (CELL, "lstm"):
        _, params, _, _ = make(cell)
        sizes[cell] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sizes[CELL] - sizes["lstm"] == 5 * E * H + 3 * E + 2 * H
    assert CELLS[CELL].count_weights(E, H) == (6 * E * H, 3 * E * H + 4 * H * H)
