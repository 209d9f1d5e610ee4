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

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Blocks, Cell, Fused


def forward(a: Blocks, q: Blocks, h: jax.Array) -> tuple[jax.Array, Blocks]:
    r = jax.nn.sigmoid(a[0] + q[0])
    z = jax.nn.sigmoid(a[1] + q[1])
    n = jnp.tanh(a[2] + r * q[2])
    return (1 - z) * n + z * h, (r, z, n, q[2])


def backward(d_h: jax.Array, saved: Blocks, h: jax.Array) -> tuple[Blocks, jax.Array, Any]:
    r, z, n, q_n = saved
    d_a_n = d_h * (1 - z) * (1 - n * n)  # d_q_n is this times r, the reset gate
    d_r = d_a_n * q_n * r * (1 - r)
    d_z = d_h * (h - n) * z * (1 - z)
    return (d_r, d_z, d_a_n * r), d_a_n, d_h * z


GRU = Cell(
    name="gru",
    module=nn.GRUCell,
    equations="""\
r = sigmoid(x @ ir/kernel + ir/bias + h @ hr/kernel)
z = sigmoid(x @ iz/kernel + iz/bias + h @ hz/kernel)
n = tanh(x @ in/kernel + in/bias + r * (h @ hn/kernel + hn/bias))
h = (1 - z) * n + z * h""",
    recurrent=("hr", "hz", "hn"),
    fused=Fused(("r", "z", "n"), "i", forward, backward, last_bias="hn"),
)
