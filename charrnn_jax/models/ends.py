"""The two ends of a model: the table of embeddings, and the dense layer, which may share it.

  table  = A, or factored A K          A [V, E], or A [V, r] and K [r, E]
  logits = h W + b                     W [N, V]
  logits = (h P) table^T + b           tied; P [N, E], not there if N = E

Sources: tied, Press & Wolf 2016 (arXiv:1608.05859) and Inan et al. 2016 (arXiv:1611.01462);
factored, Lan et al. 2019 (arXiv:1909.11942), section 3.1.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from charrnn_jax.models.products import product

# N(0, 1/E), which Flax uses for embeddings, too.
_ROWS = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


class Embedding(nn.Module):
    """The table of embeddings; a product of two matrices if `rank` is not 0.

    Attributes:
      vocabulary_size: V.
      embedding_size: E, units of the embedding.
      rank: r, columns of the first matrix; 0: the table is not factored.
      dtype: type of the operands of the product, "float32" or "bfloat16".
    """

    vocabulary_size: int
    embedding_size: int
    rank: int = 0
    dtype: str = "float32"

    def setup(self) -> None:
        columns = self.rank or self.embedding_size
        self.embedding = self.param("embedding", _ROWS, (self.vocabulary_size, columns))
        if self.rank:  # such that the product, too, is initially of variance 1/E
            init = nn.initializers.variance_scaling(1.0, "fan_out", "normal")
            self.kernel = self.param("kernel", init, (self.rank, self.embedding_size))

    def __call__(self) -> jax.Array:
        """Returns the table [V, E]."""
        if not self.rank:
            return self.embedding
        return product(self.embedding, self.kernel, dtype=self.dtype)


class Dense(nn.Module):
    """The dense layer.

    Attributes:
      vocabulary_size: V.
      is_tied: whether it multiplies by the embedding table, instead of by a kernel of its own.
      dtype: type of the operands of products, "float32" or "bfloat16".
    """

    vocabulary_size: int
    is_tied: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, table: jax.Array) -> jax.Array:
        """Returns logits [..., V] of x [..., N]; the embedding table is [V, E]."""
        init, (width, embedding_size) = (
            nn.initializers.lecun_normal(),
            (x.shape[-1], table.shape[1]),
        )
        if not self.is_tied:
            kernel = self.param("kernel", init, (width, self.vocabulary_size))
        else:
            if width != embedding_size:
                projection = self.param("projection", init, (width, embedding_size))
                x = product(x, projection, dtype=self.dtype)
            kernel = table.T
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary_size,))
        logits = product(x, kernel, dtype=self.dtype)
        return logits + jnp.broadcast_to(bias, logits.shape)


def dense_kernel(params: Mapping[str, Any], *, table: jax.Array) -> jax.Array:
    """Returns the one kernel [N, V] that a dense layer multiplies by in effect.

    Args:
      params: parameters of the layer.
      table: [V, E] embedding table.
    """
    if "kernel" in params:
        kernel: jax.Array = params["kernel"]
        return kernel
    if "projection" not in params:
        return table.T
    return product(params["projection"], table.T, dtype="float32")
