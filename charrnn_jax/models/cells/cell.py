"""`Cell`: the record that describes a recurrent cell to all other code.

A cell maps (carry, x) to (carry, y) for one time step. Its Flax module is enough to train, resume,
evaluate, sample, sweep and export it. A cell may also have faster forms, with the same parameters,
and the same results up to rounding:

  fused     steps written by hand, with one product each; `models.fused` runs them over time
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

Blocks = tuple[jax.Array, ...]  # one [B, H] per gate
# (params, carry, inputs [B, T, E], dtype=) -> (carry, outputs [B, T, H])
Parallel = Callable[..., tuple[Any, jax.Array]]


class CellWeights(NamedTuple):
    """The parameters of a fused cell with the gates side by side; G is the number of gates.

    Attributes:
      input_kernel: [E, G H] input kernel.
      input_bias: [G H] bias of every gate.
      kernel: [H, G H] recurrent kernel.
      bias: [H] bias of the recurrent side of the last gate; None: the cell has no such bias.
    """

    input_kernel: Any
    input_bias: Any
    kernel: Any
    bias: Any


@dataclass(frozen=True)
class Fused:
    """A cell as functions of blocks [B, H], one per gate.

    The blocks are a = x W_i + b on the input side, and q = h W_h on the recurrent side. h is the
    carry, or the last entry of it. The parameters of gate g are the dense layers "i" + g and
    "h" + g. d_y is the gradient of the loss with respect to y.

    Attributes:
      gates: names of the gates, in the order of the blocks.
      biased: "i" or "h", the side whose dense layers have the bias.
      forward: function (a, q, carry) -> (carry, saved) for one step; `backward` needs `saved`.
      backward: function (d_carry, saved, carry before the step) -> (d_q, d_a[-1], d_carry). The
        second is None if it equals d_q[-1]; the third is without the part that comes through q.
      last_bias: name of the dense layer whose bias is added to q[-1]; "": none.
    """

    gates: tuple[str, ...]
    biased: str
    forward: Callable[[Blocks, Blocks, Any], tuple[Any, Blocks]]
    backward: Callable[[Any, Blocks, Any], tuple[Blocks, jax.Array | None, Any]]
    last_bias: str = ""

    def gather(self, params: Any) -> CellWeights:
        """Returns the parameters of the Flax module with the gates side by side."""
        return CellWeights(
            jnp.concatenate([params["i" + gate]["kernel"] for gate in self.gates], axis=1),
            jnp.concatenate([params[self.biased + gate]["bias"] for gate in self.gates]),
            jnp.concatenate([params["h" + gate]["kernel"] for gate in self.gates], axis=1),
            params[self.last_bias]["bias"] if self.last_bias else None,
        )

    def scatter(self, weights: CellWeights) -> dict[str, Any]:
        """Returns the parameters of the Flax module; the inverse of `gather`."""
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
      name: name that a config uses.
      module: class of a Flax module like flax.linen's cells. `module(features=H)` maps
        (carry, x [B, E]) to (carry, y [B, H]) and has `initialize_carry`. A carry consists of
        arrays [B, ...] in tuples, lists and dicts; devices may share an array whose last axis is H.
      equations: equations of one step, in the names of the parameters; vectors are rows, and @ is
        the matrix product.
      recurrent: names of the parameters that multiply the carry, at the top of the module's tree.
      carry: what the carry contains, in the letters of the equations.
      fused: fused form of the cell; None: there is none.
      parallel: parallel form of the cell; None: there is none.
    """

    name: str
    module: Callable[..., nn.RNNCellBase]
    equations: str
    recurrent: tuple[str, ...]
    carry: str = "h"
    fused: Fused | None = None
    parallel: Parallel | None = None

    def count_weights(self, input_size: int, hidden_size: int) -> tuple[int, int]:
        """Returns the number of weights in the kernels, as (input kernels, recurrent kernels).

        A step multiplies each weight once for every sequence of a batch.

        Args:
          input_size: E, size of the input.
          hidden_size: H, units of the layer.
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
