"""Gated recurrent unit with layer normalisation.

With x [B, E], h [B, H], s the logistic function, * elementwise, [u, v] two vectors side by side,
and LN(v) = norm(v) * scale + bias, each with a scale and a bias of its own:

  [r, z] = s(LN([W_ir x, W_iz x]) + LN([W_hr h, W_hz h]))
  n  = tanh(LN(W_in x) + r * LN(W_hn h))
  h' = (1 - z) * n + z * h

The input side and the recurrent side are normalised separately, r and z together, and n on its own.
The carry is not normalised. The second LN has no bias, which would only add to that of the first.

Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450), supplementary material, where the gate z is
1 - z of this one, as is usual in papers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, CellWeights, Fused, Operations, Weights
from charrnn_jax.models.cells.layer_norm import Norm, joined_products, norm


class LayerNormGRUCell(nn.RNNCellBase):
    """One step; the carry is h.

    Attributes:
      features: H, units of the layer.
    """

    features: int

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        gates = Norm(name="norm_i")(joined_products(x, "ir", "iz", features=self.features))
        q = joined_products(h, "hr", "hz", features=self.features)
        r, z = jnp.split(nn.sigmoid(gates + Norm(use_bias=False, name="norm_h")(q)), 2, axis=-1)
        i_n = Norm(name="norm_in")(joined_products(x, "in", features=self.features))
        h_n = Norm(name="norm_hn")(joined_products(h, "hn", features=self.features))
        h = (1 - z) * nn.tanh(i_n + r * h_n) + z * h
        return h, h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


def gather(params: Any) -> CellWeights:
    def kernel(side: str) -> jax.Array:
        return jnp.concatenate([params[side + gate]["kernel"] for gate in "rzn"], axis=1)

    inputs = {
        name: jnp.concatenate([params["norm_i"][name], params["norm_in"][name]])
        for name in ("scale", "bias")
    }
    n = params["norm_hn"]
    recurrent = {"scale": params["norm_h"]["scale"], "scale_n": n["scale"], "bias_n": n["bias"]}
    return CellWeights(Weights({"i": kernel("i")}, inputs), Weights({"h": kernel("h")}, recurrent))


def read(ops: Operations, x: jax.Array) -> jax.Array:
    a = ops.times("i", x)
    gates, n = jnp.split(a, [2 * (a.shape[-1] // 3)], axis=-1)
    return (
        jnp.concatenate([norm(gates), norm(n)], axis=-1) * ops.vectors["scale"]
        + ops.vectors["bias"]
    )


def step(ops: Operations, h: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    sizes = [2 * h.shape[-1]]
    (a, a_n), (q, q_n) = (jnp.split(v, sizes, axis=-1) for v in (a, ops.times("h", h)))
    gates = a + norm(q) * ops.vectors["scale"]
    r, z = (ops.sigmoid(gate) for gate in jnp.split(gates, 2, axis=-1))
    n = ops.tanh(a_n + r * (norm(q_n) * ops.vectors["scale_n"] + ops.vectors["bias_n"]))
    h = (1 - z) * n + z * h
    return h, h


LAYER_NORM_GRU = Cell(
    name="layer_norm_gru",
    module=LayerNormGRUCell,
    equations="""\
a = norm(joined(x @ ir/kernel, x @ iz/kernel)) * norm_i/scale + norm_i/bias
q = norm(joined(h @ hr/kernel, h @ hz/kernel)) * norm_h/scale
r, z = split(sigmoid(a + q), 2)
a_n = norm(x @ in/kernel) * norm_in/scale + norm_in/bias
q_n = norm(h @ hn/kernel) * norm_hn/scale + norm_hn/bias
n = tanh(a_n + r * q_n)
h = (1 - z) * n + z * h
# norm(v) = (v - mean(v)) / sqrt(var(v) + 1e-5), for each sequence over the entries of v""",
    recurrent=("hr", "hz", "hn"),
    fused=Fused(gather, read, step),
    gate_names=("reset gate", "update gate", "candidate"),
)
