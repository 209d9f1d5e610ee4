"""Layer normalisation, for cells that normalise inside of their step.

  norm(v) = (v - mean(v)) / sqrt(mean((v - mean(v))^2) + epsilon)

over the entries of a vector, for each sequence on its own; a learned scale, and maybe a bias,
follow.

Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450), equation 4.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

_EPSILON = 1e-5

# norm(v) * scale + bias, as a module.
Norm = partial(nn.LayerNorm, epsilon=_EPSILON, use_fast_variance=False)


def norm(v: jax.Array) -> jax.Array:
    """Returns norm(v) [..., N], over the last axis, without scale and bias."""
    centred = v - v.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + _EPSILON)


def joined_products(v: jax.Array, *names: str, features: int) -> jax.Array:
    """Returns v times the kernels of dense layers without bias, side by side.

    To be called in a compact method of a Flax module. The kernels are drawn as in Flax's cells.

    Args:
      v: [B, K] input or carry.
      names: names of the dense layers; those that begin with "h" multiply the carry.
      features: H, units of each dense layer.
    """

    def times(name: str) -> jax.Array:
        initializers = {"i": nn.initializers.lecun_normal(), "h": nn.initializers.orthogonal()}
        return nn.Dense(features, use_bias=False, kernel_init=initializers[name[0]], name=name)(v)

    return jnp.concatenate([times(name) for name in names], axis=-1)
