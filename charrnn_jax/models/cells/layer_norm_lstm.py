"""Long short-term memory with layer normalisation.

With x [B, E], h and c [B, H], s the logistic function, * elementwise, [u, v] vectors side by side,
and LN(v) = norm(v) * scale + bias, each with a scale and a bias of its own:

  [i, f, g, o] = LN([W_ii x, W_if x, W_ig x, W_io x]) + LN([W_hi h, W_hf h, W_hg h, W_ho h])
  c' = s(f) * c + s(i) * tanh(g)
  h' = s(o) * tanh(LN(c'))

The input side and the recurrent side of all gates are normalised separately, and the cell state
where h reads it; the c of the carry is not normalised. The second LN has no bias, which would only
add to that of the first, and neither have the gates.

Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450), equations 20 to 22.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, CellWeights, Fused, Operations, Weights
from charrnn_jax.models.cells.layer_norm import Norm, joined_products, norm
from charrnn_jax.models.cells.lstm import LSTMCarry


class LayerNormLSTMCell(nn.RNNCellBase):
    """One step; the carry is (c, h).

    Attributes:
      features: H, units of the layer.
    """

    features: int

    @nn.compact
    def __call__(self, carry: LSTMCarry, x: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        c, h = carry
        a = joined_products(x, "ii", "if", "ig", "io", features=self.features)
        q = joined_products(h, "hi", "hf", "hg", "ho", features=self.features)
        gates = Norm(name="norm_i")(a) + Norm(use_bias=False, name="norm_h")(q)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * nn.tanh(g)
        h = nn.sigmoid(o) * nn.tanh(Norm(name="norm_c")(c))
        return (c, h), h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        zeros = jnp.zeros((*input_shape[:-1], self.features))
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        return 1


def gather(params: Any) -> CellWeights:
    def kernel(side: str) -> jax.Array:
        return jnp.concatenate([params[side + gate]["kernel"] for gate in "ifgo"], axis=1)

    c = params["norm_c"]
    recurrent = {"scale": params["norm_h"]["scale"], "scale_c": c["scale"], "bias_c": c["bias"]}
    return CellWeights(
        Weights({"i": kernel("i")}, dict(params["norm_i"])), Weights({"h": kernel("h")}, recurrent)
    )


def read(ops: Operations, x: jax.Array) -> jax.Array:
    return norm(ops.times("i", x)) * ops.vectors["scale"] + ops.vectors["bias"]


def step(ops: Operations, carry: LSTMCarry, a: jax.Array) -> tuple[LSTMCarry, jax.Array]:
    c, h = carry
    gates = a + norm(ops.times("h", h)) * ops.vectors["scale"]
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    h = ops.sigmoid(o) * ops.tanh(norm(c) * ops.vectors["scale_c"] + ops.vectors["bias_c"])
    return (c, h), h


LAYER_NORM_LSTM = Cell(
    name="layer_norm_lstm",
    module=LayerNormLSTMCell,
    equations="""\
a = joined(x @ ii/kernel, x @ if/kernel, x @ ig/kernel, x @ io/kernel)
q = joined(h @ hi/kernel, h @ hf/kernel, h @ hg/kernel, h @ ho/kernel)
gates = norm(a) * norm_i/scale + norm_i/bias + norm(q) * norm_h/scale
i, f, g, o = split(gates, 4)
c = sigmoid(f) * c + sigmoid(i) * tanh(g)
h = sigmoid(o) * tanh(norm(c) * norm_c/scale + norm_c/bias)
# norm(v) = (v - mean(v)) / sqrt(var(v) + 1e-5), for each sequence over the entries of v""",
    recurrent=("hi", "hf", "hg", "ho"),
    carry="(c, h)",
    fused=Fused(gather, read, step),
    gate_names=("forget gate", "input gate", "candidate", "output gate", ""),
)
