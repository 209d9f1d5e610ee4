"""The recurrent residual block of Griffin: RG-LRU, temporal convolution, gated MLP.

With x [B, E], the carry v [B, 3, H] and s [B, H], q the logistic function, * elementwise, and
N(y) = y / sqrt(mean(y^2) + 1e-6) * scale, each with a scale of its own:

  y  = N(x)
  g  = gelu(W_g y + b_g)                              gate of the recurrent branch
  u  = W_u y + b_u
  c  = k_0 * v_0 + k_1 * v_1 + k_2 * v_2 + k_3 * u + b_c      convolution over time, each unit alone
  v' = (v_1, v_2, u)                                  its last three inputs
  r  = q(W_r c + b_r)                                 recurrence gate
  i  = q(W_i c + b_i)                                 input gate
  a  = exp(-8 softplus(L) * r)
  s' = a * s + sqrt(1 - a^2) * (i * c)                RG-LRU
  o  = x + W_o (g * s') + b_o
  h  = o + W_d (gelu(W_e N(o) + b_e) * (W_f N(o) + b_f)) + b_d        gated MLP, 3 H units wide

h is the output of the layer; a model is a stack of such layers. Where E and H differ, as they may
in the first layer, the x of the residual sum is W_s x. Only s' is recurrent in the sense of
needing a loop, and it is linear in s.

The paper's choices that are kept: c = 8, a convolution of width 4, an MLP of 3 H, RMSNorm, and L
drawn so that exp(-8 softplus(L)), the factor a of an open gate, is uniform from 0.9 to 0.999. The
authors' code (google-deepmind/recurrentgemma) draws exp(-softplus(L)) from this interval instead;
the initial convolution has its scale, N(0, 0.05^2). gelu is the tanh approximation, as there. What
differs: the gates' matrices W_r and W_i are full and not block-diagonal, which saves work only
at the widths of large models, and u has H units instead of 4 H / 3.

Source: De et al. 2024, "Griffin" (arXiv:2402.19427), sections 2.1 to 2.4, equations 1 to 4.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.cells.cell import Cell, CellWeights, Fused, Operations, Weights
from charrnn_jax.models.linear import linear_recurrence

RGLRUCarry = tuple[jax.Array, jax.Array]  # (v, s)
WIDTH = 4  # of the convolution, in steps
SHARPNESS = 8.0  # the paper's c
EXPANSION = 3  # width of the MLP, in H
EPSILON = 1e-6
_SMALLEST = 1e-12  # of 1 - a^2: the slope of the root is finite also if a is rounded to 1


def decay_init(key: jax.Array, shape: tuple[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns L for which exp(-8 softplus(L)) is uniform from 0.9 to 0.999."""
    factor = jax.random.uniform(key, shape, dtype, 0.9, 0.999)
    return jnp.log(jnp.expm1(-jnp.log(factor) / SHARPNESS))


def coefficients(
    c: jax.Array, r: jax.Array, i: jax.Array, decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (a, b) of s' = a * s + b, from the gates after the logistic function and L."""
    log_a = -SHARPNESS * jax.nn.softplus(decay) * r
    root = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), _SMALLEST))
    return jnp.exp(log_a), root * (i * c)


class RGLRUCell(nn.RNNCellBase):
    """One step; the carry is (the last three inputs of the convolution, the state of the RG-LRU).

    Attributes:
      features: H, units of the layer.
    """

    features: int

    @nn.compact
    def __call__(self, carry: RGLRUCarry, x: jax.Array) -> tuple[RGLRUCarry, jax.Array]:
        def dense(name: str, size: int = self.features) -> nn.Dense:
            return nn.Dense(size, name=name)

        v, s = carry
        y = nn.RMSNorm(epsilon=EPSILON, name="norm")(x)
        gate = nn.gelu(dense("gate")(y))
        window = jnp.concatenate([v, dense("input")(y)[:, None]], axis=1)  # [B, 4, H]
        c = Convolution(name="conv")(window)
        r, i = nn.sigmoid(dense("recurrence_gate")(c)), nn.sigmoid(dense("input_gate")(c))
        decay = self.param("decay", decay_init, (self.features,))
        a, b = coefficients(c, r, i, decay[None])
        s = a * s + b
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, use_bias=False, name="skip")(x)
        o = x + dense("output")(gate * s)
        y, wide = nn.RMSNorm(epsilon=EPSILON, name="mlp_norm")(o), EXPANSION * self.features
        mlp = nn.gelu(dense("mlp_gate", wide)(y)) * dense("mlp_up", wide)(y)
        return (window[:, 1:], s), o + dense("mlp_down")(mlp)

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> RGLRUCarry:
        rows = input_shape[:-1]
        return jnp.zeros((*rows, WIDTH - 1, self.features)), jnp.zeros((*rows, self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


class Convolution(nn.Module):
    """The sum of the last four inputs [B, 4, H], each unit with weights of its own."""

    @nn.compact
    def __call__(self, window: jax.Array) -> jax.Array:
        size = window.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(0.05), (WIDTH, size))
        bias = self.param("bias", nn.initializers.zeros, (size,))
        return (window * kernel[None]).sum(axis=1) + bias[None]


def gather(params: Any) -> CellWeights:
    def side_by_side(what: str, *names: str) -> jax.Array:
        return jnp.concatenate([params[name][what] for name in names], axis=-1)

    inputs, gates, mlp = (
        ("gate", "input"),
        ("recurrence_gate", "input_gate"),
        ("mlp_gate", "mlp_up"),
    )
    read_kernels = {"i": side_by_side("kernel", *inputs)}
    if "skip" in params:
        read_kernels["skip"] = params["skip"]["kernel"]
    return CellWeights(
        Weights(
            read_kernels, {"i": side_by_side("bias", *inputs), "norm": params["norm"]["scale"]}
        ),
        Weights(
            {
                "gates": side_by_side("kernel", *gates),
                "output": params["output"]["kernel"],
                "mlp": side_by_side("kernel", *mlp),
                "down": params["mlp_down"]["kernel"],
            },
            {
                **{f"conv{k}": params["conv"]["kernel"][k] for k in range(WIDTH)},
                "conv": params["conv"]["bias"],
                "gates": side_by_side("bias", *gates),
                "decay": params["decay"],
                "output": params["output"]["bias"],
                "norm": params["mlp_norm"]["scale"],
                "mlp": side_by_side("bias", *mlp),
                "down": params["mlp_down"]["bias"],
            },
        ),
    )


def dense(ops: Operations, name: str, x: jax.Array) -> jax.Array:
    return ops.times(name, x) + ops.vectors[name]


def rms_norm(ops: Operations, x: jax.Array) -> jax.Array:
    mean_square = jnp.square(x).mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + EPSILON) * ops.vectors["norm"]


def read(ops: Operations, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what depends on x alone: u, the gate, and x in the size of the layer."""
    gate, u = jnp.split(dense(ops, "i", rms_norm(ops, x)), 2, axis=-1)
    return u, jax.nn.gelu(gate), x if x.shape[-1] == u.shape[-1] else ops.times("skip", x)


def before(ops: Operations, window: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns (a, b) of s' = a * s + b; window: the last four u, [..., H] each."""
    c = sum((u * ops.vectors[f"conv{k}"] for k, u in enumerate(window)), ops.vectors["conv"])
    r, i = jnp.split(ops.sigmoid(dense(ops, "gates", c)), 2, axis=-1)
    return coefficients(c, r, i, ops.vectors["decay"])


def after(ops: Operations, s: jax.Array, gate: jax.Array, x: jax.Array) -> jax.Array:
    """Returns h, the output of the block."""
    o = x + dense(ops, "output", gate * s)
    gate, up = jnp.split(dense(ops, "mlp", rms_norm(ops, o)), 2, axis=-1)
    return o + dense(ops, "down", jax.nn.gelu(gate) * up)


def step(ops: Operations, carry: RGLRUCarry, a: Any) -> tuple[RGLRUCarry, jax.Array]:
    (v, s), (u, gate, x) = carry, a
    window = [*jnp.unstack(v, axis=1), u]
    factor, addend = before(ops, window)
    s = factor * s + addend
    return (jnp.stack(window[1:], axis=1), s), after(ops, s, gate, x)


def parallel(ops: Operations, carry: RGLRUCarry, a: Any) -> tuple[RGLRUCarry, jax.Array]:
    (v, s), (u, gate, x) = carry, a
    long = jnp.concatenate([v.swapaxes(0, 1), u])  # [3 + T, B, H]
    window = [long[k : k + len(u)] for k in range(WIDTH)]
    states = linear_recurrence(*before(ops, window), s)
    return (long[len(u) :].swapaxes(0, 1), states[-1]), after(ops, states, gate, x)


RG_LRU = Cell(
    name="rg_lru",
    module=RGLRUCell,
    equations="""\
y = x / rms(x) * norm/scale
g = gelu(y @ gate/kernel + gate/bias)
u = y @ input/kernel + input/bias
v = [v[:, 0], v[:, 1], v[:, 2], u]
k = conv/kernel
c = v[0] * k[0] + v[1] * k[1] + v[2] * k[2] + v[3] * k[3] + conv/bias
r = sigmoid(c @ recurrence_gate/kernel + recurrence_gate/bias)
i = sigmoid(c @ input_gate/kernel + input_gate/bias)
a = exp(-8 * log(1 + exp(decay)) * r)
s = a * s + sqrt(1 - a**2) * (i * c)
o = skip(x) + (g * s) @ output/kernel + output/bias
y = o / rms(o) * mlp_norm/scale
g = gelu(y @ mlp_gate/kernel + mlp_gate/bias)
h = o + (g * (y @ mlp_up/kernel + mlp_up/bias)) @ mlp_down/kernel + mlp_down/bias
# rms(v) = sqrt(mean(v**2) + 1e-6); gelu in its approximation with tanh. The next v is the last
# three of the list. skip(x) is x @ skip/kernel if x and h differ in size, and else x.""",
    recurrent=("conv", "recurrence_gate", "input_gate", "output", "mlp_gate", "mlp_up", "mlp_down"),
    carry="(v, s)",
    output=None,  # the output is made from the carry, but not part of it
    fused=Fused(gather, read, step),
    parallel=parallel,
)
