"""`Cell`: what a recurrent cell is, in one record that everything else reads.

A cell maps (carry, x) to (carry, y) for one time step. Its Flax module is enough to train, resume,
evaluate, sample, sweep and export it. A cell may have faster forms besides, with the same
parameters and the same results up to rounding:

  fused     forward and backward by hand, one product a step; `models.fused` runs it over time
  parallel  a whole sequence at once, for cells whose recurrence is linear in the carry
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

Blocks = tuple[jax.Array, ...]  # one [B, H] a gate
# (params, carry, inputs [B, T, E], dtype=) -> (carry, outputs [B, T, H])
Parallel = Callable[..., tuple[Any, jax.Array]]


class CellWeights(NamedTuple):
    """The parameters of a fused cell with the gates side by side; G is the number of gates.

    Attributes:
      input_kernel: [E, G H].
      input_bias: [G H], the bias of every gate.
      kernel: [H, G H], the recurrent kernel.
      bias: [H], added to the recurrent side of the last gate; None: the cell has no such bias.
    """

    input_kernel: Any
    input_bias: Any
    kernel: Any
    bias: Any


@dataclass(frozen=True)
class Fused:
    """A cell as functions of blocks [B, H], one a gate: a = x W_i + b on the input side, and
    q = h W_h on the recurrent side. h is the carry, or the last entry of it.

    The parameters of gate g are the dense layers "i" + g and "h" + g.

    Attributes:
      gates: their names, in the order of the blocks.
      biased: "i" or "h", the side whose dense layers have the bias.
      forward: (a, q, carry) -> (carry, saved): one step, and what its gradient needs.
      backward: (d_carry, saved, carry before the step) -> (d_q; d_a[-1], or None where it equals
        d_q[-1]; d_carry without what comes through q). d_y is the gradient of the loss by y.
      last_bias: the dense layer whose bias is added to q[-1]; "": there is none.
    """

    gates: tuple[str, ...]
    biased: str
    forward: Callable[[Blocks, Blocks, Any], tuple[Any, Blocks]]
    backward: Callable[[Any, Blocks, Any], tuple[Blocks, jax.Array | None, Any]]
    last_bias: str = ""

    def gather(self, params: Any) -> CellWeights:
        """Puts the parameters of the Flax module side by side."""
        return CellWeights(
            jnp.concatenate([params["i" + gate]["kernel"] for gate in self.gates], axis=1),
            jnp.concatenate([params[self.biased + gate]["bias"] for gate in self.gates]),
            jnp.concatenate([params["h" + gate]["kernel"] for gate in self.gates], axis=1),
            params[self.last_bias]["bias"] if self.last_bias else None,
        )

    def scatter(self, weights: CellWeights) -> dict[str, Any]:
        """Returns the parameters of the Flax module: the reverse of `gather`."""
        size = len(weights.kernel)
        params: dict[str, Any] = {}
        for index, gate in enumerate(self.gates):
            block = slice(index * size, (index + 1) * size)
            params["i" + gate] = {"kernel": weights.input_kernel[:, block]}
            params["h" + gate] = {"kernel": weights.kernel[:, block]}
            params[self.biased + gate]["bias"] = weights.input_bias[block]
        if self.last_bias:
            params[self.last_bias]["bias"] = weights.bias
        return params


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes:
      name: that a config uses.
      module: Flax module, `module(features=H)`: (carry, x [B, E]) -> (carry, y [B, H]), with
        `initialize_carry` as flax.linen's cells have it. A carry is made of arrays [B, ...] in
        tuples, lists and dicts; those that end in H are shared among devices.
      equations: one step in the names of the parameters; vectors are rows, @ is the matrix product.
      recurrent: the parameters that multiply the carry, by their first name in the module's tree.
      carry: what the carry holds, in the letters of the equations.
      fused: the cell by hand; None: it has no such form.
      parallel: the cell over a whole sequence at once; None: it has no such form.
    """

    name: str
    module: Callable[..., nn.RNNCellBase]
    equations: str
    recurrent: tuple[str, ...]
    carry: str = "h"
    fused: Fused | None = None
    parallel: Parallel | None = None

    def count_weights(self, input_size: int, hidden_size: int) -> tuple[int, int]:
        """Returns the size of the kernels: (those that multiply the input, the recurrent ones).

        A step multiplies each weight once for every sequence of a batch.
        """
        return _count_weights(self, input_size, hidden_size)

    def initialize_carry(self, batch_size: int, hidden_size: int) -> Any:
        """Returns the carry before the first character, for B sequences."""
        module = self.module(features=hidden_size, parent=None)
        return module.initialize_carry(jax.random.key(0), (batch_size, hidden_size))


@cache
def _count_weights(cell: Cell, input_size: int, hidden_size: int) -> tuple[int, int]:
    def initialize() -> Any:
        carry = cell.initialize_carry(1, hidden_size)
        module = cell.module(features=hidden_size, parent=None)
        return module.init(jax.random.key(0), carry, jnp.zeros((1, input_size)))["params"]

    sizes = [0, 0]
    for path, shape in flatten_dict(jax.eval_shape(initialize)).items():
        if len(shape.shape) > 1:
            sizes[path[0] in cell.recurrent] += prod(shape.shape)
    return sizes[0], sizes[1]
