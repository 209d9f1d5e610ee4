"""Long short-term memory.

With x [B, E], h and c [B, H], s the logistic function and * elementwise:

  i, f, o = s(W_i* x + W_h* h + b_h*)
  g  = tanh(W_ig x + W_hg h + b_hg)
  c' = f * c + i * g
  h' = o * tanh(c')

Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Blocks, Cell, Fused


def forward(a: Blocks, q: Blocks, carry: Any) -> tuple[Any, Blocks]:
    c, _ = carry
    i, f, o = (jax.nn.sigmoid(a[k] + q[k]) for k in (0, 1, 3))
    g = jnp.tanh(a[2] + q[2])
    c = f * c + i * g
    tanh_c = jnp.tanh(c)
    return (c, o * tanh_c), (i, f, g, o, tanh_c)


def backward(d_carry: Any, saved: Blocks, carry: Any) -> tuple[Blocks, None, Any]:
    (d_c, d_h), (i, f, g, o, tanh_c), (c, _) = d_carry, saved, carry
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i = d_c * g * i * (1 - i)
    d_f = d_c * c * f * (1 - f)
    d_g = d_c * i * (1 - g * g)
    d_o = d_h * tanh_c * o * (1 - o)
    return (d_i, d_f, d_g, d_o), None, (d_c * f, jnp.zeros_like(d_h))


LSTM = Cell(
    name="lstm",
    module=nn.OptimizedLSTMCell,  # nn.LSTMCell's parameters, with the four gates in one product
    equations="""\
i = sigmoid(x @ ii/kernel + h @ hi/kernel + hi/bias)
f = sigmoid(x @ if/kernel + h @ hf/kernel + hf/bias)
g = tanh(x @ ig/kernel + h @ hg/kernel + hg/bias)
o = sigmoid(x @ io/kernel + h @ ho/kernel + ho/bias)
c = f * c + i * g
h = o * tanh(c)""",
    recurrent=("hi", "hf", "hg", "ho"),
    carry="(c, h)",
    fused=Fused(("i", "f", "g", "o"), "h", forward, backward),
)
