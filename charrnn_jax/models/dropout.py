"""Dropout whose rate may be a traced number, so that one program can train with any rate."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike


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
        # A product, because XLA divides by a constant and by a traced number differently.
        return jnp.where(keep, x * (1.0 / (1.0 - self.rate)), 0.0)
