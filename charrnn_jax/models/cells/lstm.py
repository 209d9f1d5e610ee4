"""Long short-term memory.

With x [B, E], h and c [B, H], s the logistic function and * elementwise:

  i, f, o = s(W_i* x + W_h* h + b_h*)
  g  = tanh(W_ig x + W_hg h + b_hg)
  c' = f * c + i * g
  h' = o * tanh(c')

Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, Fused, Gates, Operations

LSTMCarry = tuple[jax.Array, jax.Array]  # (c, h)
GATES = Gates(("i", "f", "g", "o"), "h")


def step(ops: Operations, carry: LSTMCarry, a: jax.Array) -> tuple[LSTMCarry, jax.Array]:
    c, h = carry
    i, f, g, o = jnp.split(a + ops.times("h", h), 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    h = ops.sigmoid(o) * ops.tanh(c)
    return (c, h), h


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
    fused=Fused(GATES.gather, GATES.read, step),
    gates=GATES,
    gate_names=("forget gate", "input gate", "candidate", "output gate", ""),
)
