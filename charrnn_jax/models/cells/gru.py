"""Gated recurrent unit.

With x [B, E], h [B, H], s the logistic function and * elementwise:

  r  = s(W_ir x + b_ir + W_hr h)
  z  = s(W_iz x + b_iz + W_hz h)
  n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
  h' = (1 - z) * n + z * h

The reset gate r is applied after the recurrent product, as in Flax, cuDNN, PyTorch and Keras's
`reset_after=True`, so one product serves all three gates.

Source: Cho et al. 2014 (arXiv:1406.1078), in the form of Chung et al. 2014 (arXiv:1412.3555).
"""

import jax
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, Fused, Gates, Operations

GATES = Gates(("r", "z", "n"), "i", last_bias="hn")


def step(ops: Operations, h: jax.Array, a: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    a_r, a_z, a_n = a
    q_r, q_z, q_n = ops.times_parts("h", h, 3)
    r = ops.sigmoid(a_r + q_r)
    z = ops.sigmoid(a_z + q_z)
    n = ops.tanh(a_n + r * (q_n + ops.vectors["h"]))
    h = (1 - z) * n + z * h
    return h, h


GRU = Cell(
    name="gru",
    module=nn.GRUCell,
    equations="""\
r = sigmoid(x @ ir/kernel + ir/bias + h @ hr/kernel)
z = sigmoid(x @ iz/kernel + iz/bias + h @ hz/kernel)
n = tanh(x @ in/kernel + in/bias + r * (h @ hn/kernel + hn/bias))
h = (1 - z) * n + z * h""",
    recurrent=("hr", "hz", "hn"),
    fused=Fused(GATES.gather, GATES.read, step, input_parts=3),
    gates=GATES,
    gate_names=("reset gate", "update gate", "candidate"),
)
