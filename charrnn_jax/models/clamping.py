"""Hidden units that are held at a value while a model steps, to see what they do.

After every step of a layer, the output of a clamped unit is set to its value, and so is its number
in the carry, if the carry contains the output (`Cell.output`); then it is also what the layer reads
at the next step. An output that is only made from the carry, as that of the `rg_lru`, is set where
the layers above and the dense layer read it. Other arrays of the carry, such as the c of an LSTM,
are left to the cell. With residual connections, the output is what the cell gives, before the sum.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import Cell
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.pytree import TypedDataclass

Clamp = Mapping[tuple[int, int], float]  # (layer, unit), both from 0 -> value of the output


@struct.dataclass
class ClampedWeights(TypedDataclass):
    """Weights of a model with units that `step` holds at their values.

    The shapes do not depend on the number of units, so all clamps of a model share one program.

    Attributes:
      weights: weights of the model, as returned by `prepare`.
      is_clamped: [L, H] bool, whether a unit is held.
      values: [L, H] float32, what it is held at; 0 for all other units.
    """

    weights: Any
    is_clamped: jax.Array
    values: jax.Array

    def hold(self, output: jax.Array, layer: int) -> jax.Array:
        """Returns the output [..., H] of a layer with its clamped units set."""
        row = (1,) * (output.ndim - 1) + (-1,)
        return jnp.where(
            self.is_clamped[layer].reshape(row), self.values[layer].reshape(row), output
        )

    def hold_carry(self, carry: Any, layer: int, *, cell: Cell) -> Any:
        """Returns the carry of a layer with its clamped units set, if it contains the output."""
        if cell.output is None:
            return carry
        output = cell.output(carry)
        held = self.hold(output, layer)
        return jax.tree.map(lambda array: held if array is output else array, carry)


def clamp_units(weights: Any, clamp: Clamp, *, model: CharRNN) -> Any:
    """Returns the weights, or with a clamp `ClampedWeights`, which `step` reads as well.

    Args:
      weights: weights of the model, as returned by `prepare`.
      clamp: value of each clamped unit.
      model: the model.

    Raises:
      UserError: see `check_clamp`.
    """
    check_clamp(clamp, model=model)
    if not clamp:
        return weights
    is_clamped = np.zeros((model.num_layers, model.hidden_size), bool)
    values = np.zeros(is_clamped.shape, np.float32)
    for unit, value in clamp.items():
        is_clamped[unit], values[unit] = True, value
    return ClampedWeights(weights, *jax.device_put((is_clamped, values)))


def check_clamp(clamp: Clamp, *, model: CharRNN) -> None:
    """Checks that a model has the units of a clamp.

    Raises:
      UserError: the model has no such layer or unit, or a value is not a finite float32.
    """
    for (layer, unit), value in clamp.items():
        name = f"clamp has {layer}:{unit}={value:g}, but"
        if layer not in range(model.num_layers):
            raise UserError(f"{name} the last layer is {model.num_layers - 1}; the first is 0")
        if unit not in range(model.hidden_size):
            raise UserError(f"{name} the last unit is {model.hidden_size - 1}; the first is 0")
        if not abs(value) <= float(np.finfo(np.float32).max):
            raise UserError(f"{name} the value must be a finite number of 32 bits")
