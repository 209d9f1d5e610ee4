"""Mogrifier LSTM: an LSTM whose input and carry gate each other before each step.

With x [B, E], h and c [B, H], s the logistic function and * elementwise, in five rounds:

  x = 2 s(W_q1 h + b_q1) * x
  h = 2 s(W_r2 x + b_r2) * h
  x = 2 s(W_q3 h + b_q3) * x
  h = 2 s(W_r4 x + b_r4) * h
  x = 2 s(W_q5 h + b_q5) * x

and then a step of the LSTM, see `lstm`, on this x and this h. With weights of zero a round changes
nothing, since 2 s(0) = 1.

Five rounds and matrices of full rank, [H, E] or [E, H]; for its largest models the paper makes each
matrix a product of two thin ones, to save parameters. The biases are those of the paper's code; its
equations have none. That code also caps the input gate at 1 - f, which neither the equations nor
this cell does.

Source: Melis, Kočiský & Blunsom 2020 (arXiv:1909.01792), equations 1 and 2.
"""

from typing import Any

import jax
from flax import linen as nn

from charrnn_jax.models.cells import lstm
from charrnn_jax.models.cells.cell import Cell, CellWeights, Fused, Operations, Weights
from charrnn_jax.models.cells.lstm import LSTMCarry

ROUNDS = ("q1", "r2", "q3", "r4", "q5")


def gather(params: Any) -> CellWeights:
    """Returns the weights of a step; there are no others, since the carry gates the input."""
    inputs, recurrent = lstm.GATES.gather(params)
    kernels = {name: params[name]["kernel"] for name in ROUNDS}
    vectors = {name: params[name]["bias"] for name in ROUNDS}
    step = Weights(
        {**inputs.kernels, **recurrent.kernels, **kernels}, {**inputs.vectors, **vectors}
    )
    return CellWeights(Weights({}, {}), step)


def read(ops: Operations, x: jax.Array) -> jax.Array:
    return x


def step(ops: Operations, carry: LSTMCarry, x: jax.Array) -> tuple[LSTMCarry, jax.Array]:
    def gate(name: str, by: jax.Array) -> jax.Array:
        return 2 * ops.sigmoid(ops.times(name, by) + ops.vectors[name])

    c, h = carry
    for name in ROUNDS:
        if name.startswith("q"):
            x = gate(name, h) * x
        else:
            h = gate(name, x) * h
    return lstm.step(ops, (c, h), lstm.GATES.read(ops, x))


class MogrifierLSTMCell(nn.OptimizedLSTMCell):
    """The cell as a Flax module; the parameters of the LSTM have the names that they have there."""

    @nn.compact
    def __call__(self, carry: LSTMCarry, x: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        c, h = carry
        for name in ROUNDS:
            if name.startswith("q"):
                x = 2 * nn.sigmoid(nn.Dense(x.shape[-1], name=name)(h)) * x
            else:
                h = 2 * nn.sigmoid(nn.Dense(h.shape[-1], name=name)(x)) * h
        result: tuple[LSTMCarry, jax.Array] = super().__call__((c, h), x)
        return result


MOGRIFIER_LSTM = Cell(
    name="mogrifier_lstm",
    module=MogrifierLSTMCell,
    equations="""\
x = 2 * sigmoid(h @ q1/kernel + q1/bias) * x
h = 2 * sigmoid(x @ r2/kernel + r2/bias) * h
x = 2 * sigmoid(h @ q3/kernel + q3/bias) * x
h = 2 * sigmoid(x @ r4/kernel + r4/bias) * h
x = 2 * sigmoid(h @ q5/kernel + q5/bias) * x
i = sigmoid(x @ ii/kernel + h @ hi/kernel + hi/bias)
f = sigmoid(x @ if/kernel + h @ hf/kernel + hf/bias)
g = tanh(x @ ig/kernel + h @ hg/kernel + hg/bias)
o = sigmoid(x @ io/kernel + h @ ho/kernel + ho/bias)
c = f * c + i * g
h = o * tanh(c)""",
    recurrent=("q1", "q3", "q5", "hi", "hf", "hg", "ho"),
    carry="(c, h)",
    fused=Fused(gather, read, step),
    gate_names=(*("" for _ in ROUNDS), *lstm.LSTM.gate_names),
)
