"""Zoneout: in training, each unit of the carry keeps its value with some probability.

  carry' = d * carry + (1 - d) * step(carry, x),  d ~ Bernoulli(rate)

d is drawn for every step, sequence and unit, for each array of the carry on its own. Outside of
training, d is its expectation, the rate. What the cell would have computed does not depend on d: in
an LSTM, h is made from the new c even where c keeps its value. All arrays have the same rate; the
paper also gives c and h different ones.

Source: Krueger et al. 2016 (arXiv:1606.01305), equations 2 to 4.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from charrnn_jax.models.cells import Cell, Fused, Operations
from charrnn_jax.models.dropout import bernoulli

# d for the arrays of a carry, as a tree of the same structure: bool [B, ...], or the expectation
# [1, ...].
Held = Any


def draw_held(key: jax.Array, carry: Any, *, rate: ArrayLike, length: int) -> Held:
    """Draws d for T steps, as `Held` with a leading axis [T].

    Args:
      key: random key.
      carry: carry of a cell, for B sequences.
      rate: probability that a unit keeps its value.
      length: T, in steps.
    """
    leaves, structure = jax.tree.flatten(carry)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        bernoulli(key, rate, (length, *leaf.shape)) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def expected_held(carry: Any, *, rate: ArrayLike) -> Held:
    """Returns the expectation of d, for one step.

    Args:
      carry: carry of a cell, for B sequences.
      rate: probability that a unit keeps its value.
    """
    return jax.tree.map(lambda leaf: jnp.full((1,) * leaf.ndim, rate, leaf.dtype), carry)


def hold(held: Held, old: Any, new: Any) -> Any:
    """Returns d * old + (1 - d) * new, for the arrays of a carry."""

    def of_array(d: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(d, old, new) if d.dtype == jnp.bool else d * old + (1 - d) * new

    return jax.tree.map(of_array, held, old, new)


@cache
def with_zoneout(cell: Cell) -> Fused:
    """Returns the fused form of a cell with zoneout; its steps read (a, d of the step)."""
    fused, output = cell.fused, cell.output
    if fused is None or output is None:
        raise ValueError(f"the cell {cell.name!r} has no fused form, or no zoneout")

    def step(ops: Operations, carry: Any, a: tuple[Any, Held]) -> tuple[Any, jax.Array]:
        a_of_cell, held = a
        new_carry, _ = fused.step(ops, carry, a_of_cell)
        new_carry = hold(held, carry, new_carry)
        return new_carry, output(new_carry)

    return replace(fused, step=step)


def scan_with_zoneout(
    params: Any, carry: Any, inputs: jax.Array, *, cell: Cell, hidden_size: int, held: Held
) -> tuple[Any, jax.Array]:
    """Runs the Flax module of a cell over time, with zoneout.

    Args:
      params: parameters of the module.
      carry: carry of the cell, for B sequences.
      inputs: [B, T, E] inputs of the layer.
      cell: the cell.
      hidden_size: H, units of the layer.
      held: d of every step, with a leading axis [T].

    Returns:
      (carry after the last step, outputs [B, T, H]).
    """
    output = cell.output
    if output is None:
        raise ValueError(f"the cell {cell.name!r} has no zoneout")
    module = cell.module(features=hidden_size, parent=None)

    def step(carry: Any, now: tuple[jax.Array, Held]) -> tuple[Any, jax.Array]:
        x, held = now
        new_carry: Any
        new_carry, _ = module.apply({"params": params}, carry, x)
        new_carry = hold(held, carry, new_carry)
        return new_carry, output(new_carry)

    carry, outputs = lax.scan(step, carry, (inputs.swapaxes(0, 1), held))
    return carry, outputs.swapaxes(0, 1)
