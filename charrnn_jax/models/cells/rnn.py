"""Vanilla recurrent network: h' = tanh(W_i x + b_i + W_h h), with x [B, E] and h [B, H].

Source: Elman 1990, "Finding structure in time".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Blocks, Cell, Fused


def forward(a: Blocks, q: Blocks, h: jax.Array) -> tuple[jax.Array, Blocks]:
    h = jnp.tanh(a[0] + q[0])
    return h, (h,)


def backward(d_h: jax.Array, saved: Blocks, h: jax.Array) -> tuple[Blocks, None, Any]:
    (new_h,) = saved
    return (d_h * (1 - new_h * new_h),), None, jnp.zeros_like(d_h)


RNN = Cell(
    name="rnn",
    module=nn.SimpleCell,
    equations="h = tanh(x @ i/kernel + i/bias + h @ h/kernel)",
    recurrent=("h",),
    fused=Fused(("",), "i", forward, backward),
)
