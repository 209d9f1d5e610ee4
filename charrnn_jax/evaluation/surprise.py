"""What a model found likely at each character of a text, and what each character cost."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from charrnn_jax.data.batches import Batch
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.protocols import segments
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params, forward

_SEGMENT = 512  # characters in one call; does not affect the result


class Likeliest(NamedTuple):
    """The K likeliest characters at each of N positions, the likeliest first.

    Attributes:
      ids: [N, K] their ids.
      probabilities: [N, K] their probabilities.
    """

    ids: np.ndarray
    probabilities: np.ndarray


def find_likeliest(
    params: Params,
    tokens: np.ndarray,
    *,
    model: CharRNN,
    num: int,
    carry: Carry | None = None,
) -> Likeliest:
    """Predicts every character of a text after the first, each from all characters before it.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      tokens: [N + 1] ids, N at least 1.
      model: the model.
      num: K, at most V.
      carry: carry before the first token; None: that at the start of a text.
    """
    carry, parts = model.initialize_carry(1) if carry is None else carry, []
    for batch, num_targets in segments(tokens, rows=1, length=min(_SEGMENT, len(tokens) - 1)):
        carry, part = _predict(params, carry, batch, model=model, num=num)
        parts.append([x[0, :num_targets] for x in jax.device_get(part)])
    return Likeliest(*map(np.concatenate, zip(*parts, strict=True)))


@partial(jax.jit, static_argnames=("model", "num"))
def _predict(
    params: Params, carry: Carry, batch: Batch, *, model: CharRNN, num: int
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    carry, logits = forward(params, carry, batch.inputs, model=model)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), num)
    return carry, (ids, probabilities)


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
