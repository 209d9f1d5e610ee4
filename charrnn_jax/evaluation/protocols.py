"""Whole-text evaluation: what context each character is predicted from.

  cold     the text is cut into windows, each from a zero carry and the one character before it:
           what nanoGPT reports
  carried  one pass over the whole text; the carry is kept from beginning to end

Every character behind the first is counted exactly once, the tail included. Losses of different
protocols must not be compared. Knows a model and token arrays, not where they came from.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from charrnn_jax.data.batches import Batch
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.models.char_rnn import Carry, CharRNN, forward

PROTOCOLS = ("cold", "carried")
_SEGMENT = 1024  # characters a call of the carried pass; the result does not depend on it


def label(protocol: str, *, window: int) -> str:
    """Returns the name under which losses of a protocol are reported: "cold-256", "carried"."""
    return f"cold-{window}" if protocol == "cold" else protocol


def describe(protocol: str, *, window: int) -> str:
    """Returns the name of a protocol and what it is."""
    what = {
        "cold": f"the split cut into windows of {window} characters, each from a zero carry",
        "carried": "one pass over the split, the carry kept from beginning to end",
    }
    return f"{label(protocol, window=window)}: {what[protocol]}"


@partial(jax.jit, static_argnames="model")
def eval_step(params: Any, carry: Carry, batch: Batch, *, model: CharRNN) -> tuple[Carry, Any]:
    """Scores one batch.

    Args:
      params: of the model.
      carry: before the batch, for B sequences.
      batch: inputs and targets [B, T].

    Returns:
      (carry behind the batch, losses [B, T] in nats).
    """
    carry, logits = forward(params, carry, batch.inputs, model=model)
    return carry, cross_entropy(logits, batch.targets)


def character_losses(
    params: Any, tokens: np.ndarray, *, model: CharRNN, protocol: str, window: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields -log p(tokens[i] | context) for i = 1, 2, ... in order, in pieces.

    Args:
      params: of the model.
      tokens: [1 + n] ids; the first is context only.
      model: of the params.
      protocol: "cold" or "carried".
      window: characters of a cold window; the carried pass has none.
      batch_size: cold windows that are scored at once; does not change the result.

    Raises:
      ValueError: another protocol.

    Yields:
      [k] losses in nats; n in all.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    num_chars = len(tokens) - 1
    if num_chars < 1:
        return
    if protocol == "cold":
        length = min(window, num_chars)
        rows = min(batch_size, -(-num_chars // length))
    else:
        length, rows = min(_SEGMENT, num_chars), 1
    zero_carry = model.initialize_carry(rows)
    carry = zero_carry
    for start in range(0, num_chars, rows * length):
        piece = np.asarray(tokens[start : start + rows * length + 1], np.int32)
        # Only the last piece is shorter. Padding behind the end changes nothing before it.
        padded = np.zeros(rows * length + 1, np.int32)
        padded[: len(piece)] = piece
        batch = Batch(padded[:-1].reshape(rows, length), padded[1:].reshape(rows, length))
        carry, losses = eval_step(params, carry, jax.device_put(batch), model=model)
        if protocol == "cold":
            carry = zero_carry
        yield jax.device_get(losses).reshape(-1)[: len(piece) - 1]


def evaluate(
    params: Any,
    tokens: np.ndarray,
    *,
    model: CharRNN,
    protocol: str,
    window: int = 256,
    batch_size: int = 64,
) -> CrossEntropy:
    """Scores tokens[1:] under a protocol; see `character_losses` for the arguments.

    Returns:
      The loss, summed in float64, and the number of characters: len(tokens) - 1.
    """
    result = CrossEntropy(0.0, 0)
    for losses in character_losses(
        params, tokens, model=model, protocol=protocol, window=window, batch_size=batch_size
    ):
        result += CrossEntropy(float(losses.sum(dtype=np.float64)), losses.size)
    return result
