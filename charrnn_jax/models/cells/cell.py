"""`Cell`: the record that describes a recurrent cell to all other code.

A cell maps (carry, x) to (carry, y) for one time step. Its Flax module is enough to train, resume,
evaluate, sample, sweep and export it. A cell may also have faster forms, with the same parameters,
and the same results up to rounding:

  fused     the step as a function of its operations; `models.fused` runs it over time
  parallel  all steps at once, for cells that are linear in the carry; see `models.parallel`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from charrnn_jax.errors import UserError


class Weights(NamedTuple):
    """The parameters of one side of a fused cell.

    Attributes:
      kernels: matrices [K, N] by name. One of [heads, K, N] multiplies [..., heads, K], each head
        on its own; only the recurrent side can have such.
      vectors: all other parameters by name, such as biases [N].
    """

    kernels: dict[str, Any]
    vectors: dict[str, Any]


class CellWeights(NamedTuple):
    """The parameters of a fused cell.

    Attributes:
      inputs: weights of the input side, which does not depend on the carry.
      recurrent: weights of the step.
    """

    inputs: Weights
    recurrent: Weights


class Elementwise(NamedTuple):
    """A function y = f(x) of every number, whose derivative follows from its result.

    Attributes:
      f: the function.
      slope: function y -> dy/dx.
    """

    f: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]


SIGMOID = Elementwise(jax.nn.sigmoid, lambda y: y * (1 - y))
TANH = Elementwise(jnp.tanh, lambda y: 1 - y * y)
EXP = Elementwise(jnp.exp, lambda y: y)


@dataclass(frozen=True)
class Operations:
    """What a fused cell computes with. Whoever calls the cell decides what is kept of it.

    `sigmoid`, `tanh` and `exp` are those of JAX, but the backward pass has their results and does
    not compute them again.

    Attributes:
      times: function (name, x [..., K]) -> [..., N], the product of x and the kernel of this name.
      vectors: the vectors by name, repeated for every row of x: [..., N].
      apply: function (`Elementwise`, x) -> its values.
      multiply: function (name, x, number of parts) -> a product in parts; None: `times` is split.
    """

    times: Callable[[str, jax.Array], jax.Array]
    vectors: Mapping[str, jax.Array]
    apply: Callable[[Elementwise, jax.Array], jax.Array] = lambda function, x: function.f(x)
    multiply: Callable[[str, jax.Array, int], list[jax.Array]] | None = None

    def times_parts(self, name: str, x: jax.Array, num_parts: int) -> list[jax.Array]:
        """Returns a product in equal parts [..., N / num_parts].

        It equals a product that is split. But each part is kept on its own for the backward pass,
        and only if it is needed; and a part that is only added to a part of a has its gradient,
        which is then kept once. With one part, this is so for the whole.
        """
        if self.multiply:
            return self.multiply(name, x, num_parts)
        return jnp.split(self.times(name, x), num_parts, axis=-1)

    def sigmoid(self, x: jax.Array) -> jax.Array:
        return self.apply(SIGMOID, x)

    def tanh(self, x: jax.Array) -> jax.Array:
        return self.apply(TANH, x)

    def exp(self, x: jax.Array) -> jax.Array:
        return self.apply(EXP, x)


@dataclass(frozen=True)
class Fused:
    """A cell as functions of its operations.

    The functions have no parameters of their own: `ops.times("h", x)` is the product of x and the
    kernel "h", and `ops.vectors["b"]` is the vector "b". So products and their gradients can be
    computed when it is cheapest, and the cell gives no gradient: JAX differentiates the rest, which
    mixes no rows. It may be any function of JAX; what is costly and not in `Operations` is computed
    again in the backward pass.

    A product whose operand does not depend on the carry belongs to `read`: it is computed before
    the loop. A step may have any number of products, and the operand of one may depend on another.

    Attributes:
      gather: function (params of the Flax module) -> `CellWeights`.
      read: function (ops, x [..., E]) -> a, the input side: an array [..., N], or a tuple of such.
      step: function (ops, carry, a) -> (carry, y [B, H]).
      input_parts: number of equal parts [B, N / parts] in which the step reads the array a, as a
        list; 1: it reads a as it is. See `Operations.times_parts`.
    """

    gather: Callable[[Any], CellWeights]
    read: Callable[[Operations, jax.Array], Any]
    step: Callable[[Operations, Any, Any], tuple[Any, jax.Array]]
    input_parts: int = 1


# All steps of a fused cell at once: (ops, carry, a [T, B, N] or a tuple of such) -> (carry, outputs
# [T, B, H]), where `ops.times` takes [T, B, K], and `ops.vectors` are [T, B, N].
Parallel = Callable[[Operations, Any, Any], tuple[Any, jax.Array]]


@dataclass(frozen=True)
class Gates:
    """The layout of a cell whose parameters are dense layers, two per gate, as Flax names them.

    The layers of gate g are "i" + g, for the input, and "h" + g, for the carry. The fused form has
    the gates side by side: with G gates, its kernels are "i" [E, G H] and "h" [H, G H], or with
    heads "h" [heads, K, G K].

    Attributes:
      names: names of the gates, in the order of the blocks.
      biased: "i" or "h", the side whose dense layers have the bias. It is added to the input side,
        as the vector "i" [G H].
      last_bias: name of the dense layer with the bias of the last gate's recurrent side, which is
        the vector "h" [H]; "": there is none.
    """

    names: tuple[str, ...]
    biased: str
    last_bias: str = ""

    def gather(self, params: Any) -> CellWeights:
        """Returns the parameters of the Flax module with the gates side by side."""

        def kernel(side: str) -> jax.Array:
            kernels = [params[side + gate]["kernel"] for gate in self.names]
            return jnp.concatenate(kernels, axis=-1)

        bias = jnp.concatenate([params[self.biased + gate]["bias"] for gate in self.names])
        last = {"h": params[self.last_bias]["bias"]} if self.last_bias else {}
        return CellWeights(
            Weights({"i": kernel("i")}, {"i": bias}), Weights({"h": kernel("h")}, last)
        )

    def scatter(self, weights: CellWeights) -> dict[str, Any]:
        """Returns the parameters of the Flax module; the inverse of `gather`."""
        kernel, input_kernel = weights.recurrent.kernels["h"], weights.inputs.kernels["i"]
        size = len(kernel)
        params: dict[str, Any] = {}
        for index, gate in enumerate(self.names):
            block = slice(index * size, (index + 1) * size)
            params["i" + gate] = {"kernel": input_kernel[:, block]}
            params["h" + gate] = {"kernel": kernel[:, block]}
            params[self.biased + gate]["bias"] = weights.inputs.vectors["i"][block]
        if self.last_bias:
            params[self.last_bias]["bias"] = weights.recurrent.vectors["h"]
        return params

    def read(self, ops: Operations, x: jax.Array) -> jax.Array:
        """Returns a = x @ kernel + bias [..., G H], the input side of all gates."""
        return ops.times("i", x) + ops.vectors["i"]


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
      recurrent: names of the parameters that multiply the carry or what is made of it, at the top
        of the module's tree.
      carry: what the carry contains, in the letters of the equations.
      output: function from a carry to the output y that it contains, by default its last array.
        Zoneout needs it. None: the carry does not contain y.
      zoneout: whether each number of the carry may keep its value on its own; False if the arrays
        have a meaning only together.
      fused: fused form of the cell; None: there is none.
      parallel: parallel form of the cell, in place of the fused form's step: it needs `fused` for
        its input side, and for the steps of sampling and zoneout. None: there is none.
      gates: layout of the parameters, if it is that of Flax's own cells; models of other libraries
        and web pages know only this one.
      gate_names: names of the values that a step of the fused form computes with `ops.sigmoid`,
        `ops.tanh`, `ops.exp` and `ops.apply`, in their order, [B, H] each; "" leaves one out. See
        `models.inside`.
    """

    name: str
    module: Callable[..., nn.RNNCellBase]
    equations: str
    recurrent: tuple[str, ...]
    carry: str = "h"
    output: Callable[[Any], jax.Array] | None = lambda carry: jax.tree.leaves(carry)[-1]
    zoneout: bool = True
    fused: Fused | None = None
    parallel: Parallel | None = None
    gates: Gates | None = None
    gate_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.parallel and not self.fused:
            raise UserError(f"the cell {self.name!r} has a parallel form, which needs a fused one")

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
