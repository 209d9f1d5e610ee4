"""`surprise`: the loss of every character of a text, and what the model found likelier.

The text is read in one pass that keeps the carry, as under the protocol `carried`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from charrnn_jax.data.batches import Batch
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.protocols import segments
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params, forward

_SEGMENT = 512  # characters in one call; does not affect the result


class Surprise(NamedTuple):
    """Predictions of N characters, each from all characters before it.

    Attributes:
      losses: [N] losses in nats.
      likeliest: [N, K] ids of the characters that were likeliest, the likeliest first.
      probabilities: [N, K] their probabilities.
    """

    losses: np.ndarray
    likeliest: np.ndarray
    probabilities: np.ndarray


def surprise(
    params: Params, tokens: np.ndarray, *, model: CharRNN, num_likeliest: int = 5
) -> Surprise:
    """Predicts every character of a text after the first.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      tokens: [N + 1] ids, N at least 1.
      model: the model.
      num_likeliest: K, at most V.
    """
    carry, parts = model.initialize_carry(1), []
    for batch, num_targets in segments(tokens, rows=1, length=min(_SEGMENT, len(tokens) - 1)):
        carry, part = _predict(params, carry, batch, model=model, num_likeliest=num_likeliest)
        parts.append([x[0, :num_targets] for x in jax.device_get(part)])
    return Surprise(*map(np.concatenate, zip(*parts, strict=True)))


@partial(jax.jit, static_argnames=("model", "num_likeliest"))
def _predict(
    params: Params, carry: Carry, batch: Batch, *, model: CharRNN, num_likeliest: int
) -> tuple[Carry, tuple[jax.Array, jax.Array, jax.Array]]:
    carry, logits = forward(params, carry, batch.inputs, model=model)
    log_p = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
    highest, ids = jax.lax.top_k(log_p, num_likeliest)
    return carry, (losses, ids, jnp.exp(highest))


def by_character(
    losses: np.ndarray, tokens: np.ndarray, *, vocabulary: Vocabulary
) -> tuple[str, np.ndarray]:
    """Returns a text and the loss of each of its characters; that of the first is 0.

    The losses of the bytes of a character are added; those of the first character do not count.

    Args:
      losses: [N] losses in nats.
      tokens: [N + 1] ids.
      vocabulary: vocabulary of the model.

    Raises:
      UserError: the tokens are bytes, and not UTF-8 or fewer than two characters.
    """
    losses = np.concatenate([[0.0], losses])
    if vocabulary.kind == "characters":
        return vocabulary.decode(tokens), losses
    raw = (np.asarray(tokens, np.int64) - 1).astype(np.uint8)
    try:
        text = raw.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text is not UTF-8 at byte {error.start:,}, so it cannot be shown: convert it"
        ) from error
    if len(text) < 2:
        raise UserError("the text is one character, which is context: give two or more")
    starts = np.flatnonzero((raw & 0xC0) != 0x80)  # other bytes continue a character
    losses[: starts[1]] = 0.0
    return text, np.add.reduceat(losses, starts)
