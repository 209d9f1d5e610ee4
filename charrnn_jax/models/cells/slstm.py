"""sLSTM: an LSTM with exponential gates and a normaliser, the scalar-memory cell of the xLSTM.

With x [B, E], c, n, m and h [B, H], s the logistic function and * elementwise:

  a_g = W_ig x + b_ig + R_g h       for each gate g of i, f, z, o
  m'  = max(log s(a_f) + m, a_i)
  i   = exp(a_i - m')
  f   = exp(log s(a_f) + m - m')
  c'  = f * c + i * tanh(a_z)
  n'  = f * n + i
  h'  = s(a_o) * c' / n'

c / n is the mean of all tanh(a_z) so far, weighted by what the gates let through. c and n are
scaled by exp(-m), which keeps them finite for gates of any size. The scale cancels in h, so m is a
constant for gradients; for the same reason the bias of i has next to no effect. Where n = 0, as in
a carry of zeros, nothing is stored yet: m' is a_i, and f is 0. After a step n is at least 1.

The recurrent matrices R are block-diagonal: the units are in four heads (in one, if four do not
divide H), and a head reads the h of its own units only. The forget gate is the logistic function,
one of the paper's two choices and the one in its code. The initial values are those of that code
as well: recurrent matrices zero, biases of the forget gate from 5 down to -7 within a head, so that
its units forget at different rates, and input kernels N(0, 2 / (5 E)).

This is the cell alone. The block that the paper puts around it is not part of it: normalisation, a
convolution before i and f, a residual connection and a gated projection.

Source: Beck et al. 2024 (arXiv:2405.04517), equations 8 to 17.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from charrnn_jax.models.cells.cell import Cell, Elementwise, Fused, Gates, Operations

SLSTMCarry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # (c, n, m, h)
GATES = Gates(("i", "f", "z", "o"), "i")
LOG_SIGMOID = Elementwise(jax.nn.log_sigmoid, lambda y: -jnp.expm1(y))


def num_heads(hidden_size: int) -> int:
    """Returns the number of heads of H units."""
    return 1 if hidden_size % 4 else 4


def step(ops: Operations, carry: SLSTMCarry, a: jax.Array) -> tuple[SLSTMCarry, jax.Array]:
    c, n, m, h = carry
    batch_size, hidden_size = h.shape
    heads = num_heads(hidden_size)
    q = ops.times("h", h.reshape(batch_size, heads, -1))  # [B, heads, 4 H / heads]
    q = q.reshape(batch_size, heads, 4, -1).swapaxes(1, 2).reshape(batch_size, -1)
    a_i, a_f, a_z, a_o = jnp.split(a + q, 4, axis=-1)
    log_f = jnp.where(n == 0, -jnp.inf, ops.apply(LOG_SIGMOID, a_f) + m)
    m = lax.stop_gradient(jnp.maximum(log_f, a_i))
    i, f = ops.exp(a_i - m), ops.exp(log_f - m)
    c = f * c + i * ops.tanh(a_z)
    n = f * n + i
    h = ops.sigmoid(a_o) * c / n
    return (c, n, m, h), h


def forget_biases(key: jax.Array, shape: tuple[int], dtype: Any) -> jax.Array:
    """Returns the initial biases [H] of the forget gate, the same in each head."""
    heads = num_heads(*shape)
    in_head = 5 - 12 * jnp.linspace(0, 1, shape[0] // heads, dtype=dtype) ** 0.3
    return jnp.tile(in_head, heads)


class SLSTMCell(nn.RNNCellBase):
    """The cell as a Flax module: the parameters of each gate, and `step`.

    Attributes:
      features: H, units.
    """

    features: int

    @nn.compact
    def __call__(self, carry: SLSTMCarry, x: jax.Array) -> tuple[SLSTMCarry, jax.Array]:
        heads = num_heads(self.features)
        size = self.features // heads
        small = nn.initializers.variance_scaling(0.4, "fan_in", "normal")
        zeros = nn.initializers.zeros
        of_input = [
            nn.Dense(
                self.features,
                kernel_init=small,
                bias_init=forget_biases if gate == "f" else zeros,
                name=f"i{gate}",
            )
            for gate in GATES.names
        ]
        of_carry = [
            nn.Einsum(
                (heads, size, size),
                "bnk,nkl->bnl",
                use_bias=False,
                kernel_init=zeros,
                name=f"h{gate}",
            )
            for gate in GATES.names
        ]

        def times(_: str, h: jax.Array) -> jax.Array:
            return jnp.concatenate([gate(h) for gate in of_carry], axis=-1)

        a = jnp.concatenate([gate(x) for gate in of_input], axis=-1)
        return step(Operations(times, {}), carry, a)

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> SLSTMCarry:
        zeros = jnp.zeros((*input_shape[:-1], self.features))
        return zeros, zeros, zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        return 1


SLSTM = Cell(
    name="slstm",
    module=SLSTMCell,
    equations="""\
i = x @ ii/kernel + ii/bias + heads(h, hi/kernel)
f = log(sigmoid(x @ if/kernel + if/bias + heads(h, hf/kernel))) + m
f = where(n == 0, -inf, f)
z = tanh(x @ iz/kernel + iz/bias + heads(h, hz/kernel))
o = sigmoid(x @ io/kernel + io/bias + heads(h, ho/kernel))
m = maximum(f, i)
c = exp(f - m) * c + exp(i - m) * z
n = exp(f - m) * n + exp(i - m)
h = o * c / n
# heads(h, k): h in as many equal parts as k has matrices, part j times k[j], side by side""",
    recurrent=("hi", "hf", "hz", "ho"),
    carry="(c, n, m, h)",
    zoneout=False,  # c and n are scaled by this m and by no other
    fused=Fused(GATES.gather, GATES.read, step),
    gate_names=("", "input gate", "forget gate", "candidate", "output gate"),
)
