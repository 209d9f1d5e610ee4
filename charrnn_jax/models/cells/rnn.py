"""Vanilla recurrent network: h' = tanh(W_i x + b_i + W_h h), with x [B, E] and h [B, H].

Source: Elman 1990, "Finding structure in time".
"""

import jax
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, Fused, Gates, Operations

GATES = Gates(("",), "i")


def step(ops: Operations, h: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = ops.tanh(a + ops.times("h", h))
    return h, h


RNN = Cell(
    name="rnn",
    module=nn.SimpleCell,
    equations="h = tanh(x @ i/kernel + i/bias + h @ h/kernel)",
    recurrent=("h",),
    fused=Fused(GATES.gather, GATES.read, step),
    gates=GATES,
)
