"""How the next token is chosen from logits."""

import jax
import jax.numpy as jnp


def forbid(logits: jax.Array, token: int) -> jax.Array:
    """Gives one token probability 0. logits: [B, V]; returns [B, V]."""
    return jnp.where(jnp.arange(logits.shape[-1])[None] == token, -jnp.inf, logits)


def choose(logits: jax.Array, *, noise: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Draws token ~ softmax(logits / temperature), row by row; temperature 0 is the argmax.

    argmax(logits / temperature + g) with Gumbel noise g has that distribution. Multiplied by the
    temperature it is argmax(logits + temperature * g), which needs no special case for 0.

    Args:
      logits: [B, V].
      noise: [B, V] of `jax.random.gumbel`.
      temperature: scalar, at least 0.

    Returns:
      [B] int32 tokens.

    Source: Gumbel 1954; Maddison et al. 2014 (arXiv:1411.0030).
    """
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
