"""Dropout whose rate may be a traced number, so that one program can train with any rate."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import ArrayLike


def bernoulli(key: jax.Array, probability: ArrayLike, shape: Sequence[int]) -> jax.Array:
    """Draws booleans that are true with a probability, which is rounded to a multiple of 2**-16.

    It takes half the random bits of `jax.random.bernoulli`: each word of 32 serves two numbers.

    Args:
      key: random key.
      probability: a number from 0 to 1.
      shape: shape of the result, with at least one axis.
    """
    *rows, size = shape
    words = jax.random.bits(key, (*rows, -(-size // 2)), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :size]
    return halves < jnp.round(jnp.asarray(probability) * 2**16).astype(jnp.uint32)


def drops(rate: ArrayLike) -> bool:
    """Returns whether a rate is not zero. A traced one is not: see `TRACED_FIELDS`."""
    return isinstance(rate, jax.Array) or rate != 0


def unknown(number: ArrayLike) -> jax.Array:
    """Returns a number that XLA does not treat as a constant.

    So a program that has the number in it rounds like one that gets it as an argument.
    """
    return lax.optimization_barrier(jnp.float32(number))


class Dropout(nn.Module):
    """Dropout as in flax.linen, but with a rate that may be traced.

    y = x * keep / (1 - rate), keep ~ Bernoulli(1 - rate)

    Attributes:
      rate: probability of dropping a value, from 0 to below 1.
      shared_axes: axes along which the same values are dropped.

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting".
    """

    rate: ArrayLike
    shared_axes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """Drops values of x, of any shape. Needs an rng named "dropout" unless `deterministic`."""
        if deterministic:
            return x
        shape = [1 if axis in self.shared_axes else size for axis, size in enumerate(x.shape)]
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
        return jnp.where(keep, x * (1.0 / (1.0 - unknown(self.rate))), 0.0)
