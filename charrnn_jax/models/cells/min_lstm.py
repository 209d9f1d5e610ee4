"""minLSTM: an LSTM whose gates and candidate do not see the carry, which makes it linear in h.

With x [B, E], h [B, H], s the logistic function, * elementwise, and g as in `min_gru`:

  f  = s(W_f x + b_f)
  i  = s(W_i x + b_i)
  n  = g(W_n x + b_n)
  h' = f / (f + i) * h + i / (f + i) * n

Dividing the gates by their sum keeps the scale of h independent of time. The first quotient is
s(log f - log i), which is how it is computed, since f + i may be 0 after rounding; the second is 1
less it. There is neither a cell state nor an output gate.

Source: Feng et al. 2024, "Were RNNs all we needed?" (arXiv:2410.01201), section 3.2, with g of the
appendix on the log-space version.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, CellWeights, Fused, Operations, Weights
from charrnn_jax.models.cells.min_gru import Coefficients, joined, parallel, positive, step


class MinLSTMCell(nn.RNNCellBase):
    """One step; the carry is h.

    Attributes:
      features: H, units of the layer.
    """

    features: int

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_f = nn.log_sigmoid(nn.Dense(self.features, name="f")(x))
        log_i = nn.log_sigmoid(nn.Dense(self.features, name="i")(x))
        n = positive(nn.Dense(self.features, name="n")(x))
        f = nn.sigmoid(log_f - log_i)
        h = f * h + (1 - f) * n
        return h, h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


def gather(params: Any) -> CellWeights:
    return CellWeights(joined(params, "f", "i", "n"), Weights({}, {}))


def read(ops: Operations, x: jax.Array) -> Coefficients:
    f, i, n = jnp.split(ops.times("i", x) + ops.vectors["i"], 3, axis=-1)
    ratio = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
    return jax.nn.sigmoid(ratio), jax.nn.sigmoid(-ratio) * positive(n)


MIN_LSTM = Cell(
    name="min_lstm",
    module=MinLSTMCell,
    equations="""\
f = sigmoid(x @ f/kernel + f/bias)
i = sigmoid(x @ i/kernel + i/bias)
n = x @ n/kernel + n/bias
n = where(n >= 0, n + 0.5, sigmoid(n))
h = f / (f + i) * h + i / (f + i) * n""",
    recurrent=(),
    fused=Fused(gather, read, step),
    parallel=parallel,
)
