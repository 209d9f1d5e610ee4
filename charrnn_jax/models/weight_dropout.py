"""Weight dropout: DropConnect on the recurrent kernels.

  W' = W * keep / (1 - rate),  keep ~ Bernoulli(1 - rate)

The mask is drawn once a training step, for all sequences and time steps. It acts on the parameters
before the recurrence runs, so every cell has it in every form, and the gradient reaches W through
the mask.

Sources: Wan et al. 2013, "Regularization of neural networks using DropConnect"; on the recurrent
kernels, Merity et al. 2017 (arXiv:1708.02182), section 2.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from charrnn_jax.models.cells import Cell
from charrnn_jax.models.dropout import bernoulli, unknown


def drop_weights(
    params: Mapping[str, Any], *, cell: Cell, rate: ArrayLike, key: jax.Array
) -> dict[str, Any]:
    """Drops weights of all recurrent kernels of a model.

    Args:
      params: parameters of the model.
      cell: cell of its recurrent layers, which names the parameters that multiply the carry. Of
        these, vectors stay as they are.
      rate: probability of dropping a weight.
      key: random key.
    """

    flat, rate = flatten_dict(params), unknown(rate)
    recurrent = sorted(
        path
        for path, leaf in flat.items()
        if path[1] == "cell" and path[2] in cell.recurrent and leaf.ndim > 1
    )
    for path, own_key in zip(recurrent, jax.random.split(key, len(recurrent)), strict=True):
        keep = bernoulli(own_key, 1.0 - rate, flat[path].shape)
        flat[path] = jnp.where(keep, flat[path] * (1.0 / (1.0 - rate)), 0.0)
    dropped: dict[str, Any] = unflatten_dict(flat)
    return dropped
