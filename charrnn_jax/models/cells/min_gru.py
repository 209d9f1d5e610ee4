"""minGRU: a GRU whose gate and candidate do not see the carry, which makes it linear in h.

With x [B, E], h [B, H], s the logistic function and * elementwise:

  z  = s(W_z x + b_z)
  n  = g(W_n x + b_n),   g(v) = v + 0.5 if v >= 0, else s(v)
  h' = (1 - z) * h + z * n

Nothing but the last line depends on h. g is positive, continuous and increasing; it is what the
paper trains with, in its log-space version. Its plain version has n = W_n x + b_n. The logarithms
are not needed here: h is a mean of positive numbers with weights that `linear` neither divides nor
cancels. Another difference is the carry before the text: it is 0 in every cell here, while the
paper's log-space code starts from g(0) = 0.5.

One layer only remembers single characters, each with a weight of its own: h is a sum over the past
of functions of one character. It takes a second layer to see their combinations.

Source: Feng et al. 2024, "Were RNNs all we needed?" (arXiv:2410.01201), section 3.1, with g of the
appendix on the log-space version.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, CellWeights, Fused, Operations, Weights
from charrnn_jax.models.linear import linear_recurrence

Coefficients = tuple[jax.Array, jax.Array]  # (a, b) of h' = a * h + b


def positive(v: jax.Array) -> jax.Array:
    """Returns g(v), elementwise."""
    return jnp.where(v >= 0, v + 0.5, jax.nn.sigmoid(v))


class MinGRUCell(nn.RNNCellBase):
    """One step; the carry is h.

    Attributes:
      features: H, units of the layer.
    """

    features: int

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = nn.sigmoid(nn.Dense(self.features, name="z")(x))
        n = positive(nn.Dense(self.features, name="n")(x))
        h = (1 - z) * h + z * n
        return h, h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


def joined(params: Any, *names: str) -> Weights:
    """Returns dense layers side by side, as the kernel and the vector "i"."""
    kernel = jnp.concatenate([params[name]["kernel"] for name in names], axis=1)
    bias = jnp.concatenate([params[name]["bias"] for name in names])
    return Weights({"i": kernel}, {"i": bias})


def gather(params: Any) -> CellWeights:
    return CellWeights(joined(params, "z", "n"), Weights({}, {}))


def read(ops: Operations, x: jax.Array) -> Coefficients:
    z, n = jnp.split(ops.times("i", x) + ops.vectors["i"], 2, axis=-1)
    return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * positive(n)


def step(ops: Operations, h: jax.Array, coefficients: Coefficients) -> tuple[jax.Array, jax.Array]:
    a, b = coefficients
    h = a * h + b
    return h, h


def parallel(
    ops: Operations, h: jax.Array, coefficients: Coefficients
) -> tuple[jax.Array, jax.Array]:
    outputs = linear_recurrence(*coefficients, h)
    return outputs[-1], outputs


MIN_GRU = Cell(
    name="min_gru",
    module=MinGRUCell,
    equations="""\
z = sigmoid(x @ z/kernel + z/bias)
n = x @ n/kernel + n/bias
n = where(n >= 0, n + 0.5, sigmoid(n))
h = (1 - z) * h + z * n""",
    recurrent=(),
    fused=Fused(gather, read, step),
    parallel=parallel,
)
