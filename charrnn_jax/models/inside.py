"""What a model computes inside: the output, the carry and the gates of every unit at every step.

The output is what the cell gives; with residual connections, it is that before the sum.
The gates are read off the cell's own step: its elementwise functions also keep their values, which
`Cell.gate_names` names. A cell without these names has its output and its carry.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import CELLS, Cell, Operations
from charrnn_jax.models.cells.cell import Elementwise
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params
from charrnn_jax.models.dropout import drops
from charrnn_jax.models.fused import fused_read, input_of_step, repeat, times_kernel
from charrnn_jax.models.zoneout import expected_held, hold

OUTPUT = "output"
Values = dict[str, jax.Array]
_Step = Callable[[Any, Any], tuple[Any, jax.Array, Values]]  # (carry, input) -> (carry, y, gates)


@partial(jax.jit, static_argnames=("model", "with_values"))
def inside(
    params: Params, carry: Carry, tokens: ArrayLike, *, model: CharRNN, with_values: bool
) -> tuple[Carry, Values]:
    """Reads a text without dropout, and returns what each unit does after each character.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      carry: carry before the first token, for B sequences.
      tokens: [B, T] ids.
      model: the model.
      with_values: whether to return carry and gates besides the output.

    Returns:
      (carry after the last token, {name: [B, T, L, H]}). The names are "output"; those of the
      arrays [B, H] of the carry, without one that is the output; and those of the gates.

    Raises:
      UserError: `Cell.gate_names` does not fit the step of the cell.
    """
    computed: Any
    new_carry, computed = model.apply({"params": params}, carry, tokens, method="run")
    outputs = jnp.stack(computed.outputs, axis=2)
    if model.residual == "add":  # what the cell gives, before the sum
        outputs = outputs.at[:, :, 1:].subtract(outputs[:, :, :-1])
    found = {OUTPUT: outputs}
    if with_values:
        table: Any = model.apply({"params": params}, method=lambda model: model.embedding())
        inputs = table[tokens], *computed.outputs[:-1]
        layers = [
            _values(params[f"layers_{i}"]["cell"], carry[i], x, model=model)
            for i, x in enumerate(inputs)
        ]
        found |= {name: jnp.stack([layer[name] for layer in layers], 2) for name in layers[0]}
    return new_carry, found


def _values(params: Any, carry: Any, inputs: jax.Array, *, model: CharRNN) -> Values:
    """Returns the carry and the gates of one layer, {name: [B, T, H]}; `inputs` is [B, T, E]."""
    cell, xs = CELLS[model.cell], inputs.swapaxes(0, 1)
    if cell.fused:
        xs = fused_read(cell.fused, cell.fused.gather(params).inputs, xs, dtype=model.dtype)
        read = _fused_step(params, cell, batch_size=len(inputs), dtype=model.dtype)
    else:
        read = _module_step(params, cell, hidden_size=model.hidden_size)

    def step(carry: Any, x: Any) -> tuple[Any, Values]:
        new_carry, y, values = read(carry, x)
        if drops(model.zoneout):
            held = expected_held(carry, rate=model.zoneout)
            new_carry = hold(held, carry, new_carry)
            y = cell.output(new_carry)
        arrays = jax.tree.leaves(new_carry)
        letters = re.findall(r"\w+", cell.carry)
        if len(letters) != len(arrays):
            letters = [f"carry {i}" for i in range(len(arrays))]
        for letter, array in zip(letters, arrays, strict=True):
            if array.shape == (len(inputs), model.hidden_size) and array is not y:
                values[letter] = array
        return new_carry, values

    values: Values
    _, values = lax.scan(step, carry, xs)
    return {name: array.swapaxes(0, 1) for name, array in values.items()}


def _fused_step(params: Any, cell: Cell, *, batch_size: int, dtype: str) -> _Step:
    fused: Any = cell.fused
    weights = fused.gather(params).recurrent
    kernels = {name: kernel.astype(dtype) for name, kernel in weights.kernels.items()}
    vectors = repeat(weights.vectors, batch_size)

    def step(carry: Any, a: Any) -> tuple[Any, jax.Array, Values]:
        values: list[jax.Array] = []

        def apply(function: Elementwise, x: jax.Array) -> jax.Array:
            values.append(function.f(x))
            return values[-1]

        ops = Operations(lambda name, x: times_kernel(x, kernels[name]), vectors, apply)
        new_carry, y = fused.step(ops, carry, input_of_step(fused, None, a))
        if not cell.gate_names:
            return new_carry, y, {}
        if len(values) != len(cell.gate_names):
            raise UserError(
                f"the cell {cell.name!r} has {len(cell.gate_names)} gate_names, but its step "
                f"computes {len(values)} values: name each, in order"
            )
        named = zip(cell.gate_names, values, strict=True)
        return new_carry, y, {name: value for name, value in named if name}

    return step


def _module_step(params: Any, cell: Cell, *, hidden_size: int) -> _Step:
    module = cell.module(features=hidden_size, parent=None)

    def step(carry: Any, x: Any) -> tuple[Any, jax.Array, Values]:
        applied: Any = module.apply({"params": params}, carry, x)
        return *applied, {}

    return step
