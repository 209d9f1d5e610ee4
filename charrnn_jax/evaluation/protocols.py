"""Evaluation of a whole text: the context that each character is predicted from.

A protocol is a frozen dataclass of its settings, which yields the loss of every character:

  cold     the text in windows; each starts from a zero carry and the one character before it
  carried  one pass over the whole text; the carry is kept from beginning to end
  dynamic  the same, while the weights learn from what was scored; see `evaluation.dynamic`

Every character after the first is counted exactly once, up to the end of the text. Losses under
different protocols must not be compared. This module knows a model and token arrays, but not where
they come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.dynamic import Dynamic
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params, forward
from charrnn_jax.registry import PROTOCOLS

_SEGMENT = 1024  # characters in one call of the carried pass; does not affect the result
_LOGITS_BYTES = 1 << 28  # the most in one call: with large vocabularies, calls are smaller


@dataclass(frozen=True)
class Cold(Protocol):
    """The text in windows, each from a zero carry.

    Attributes:
      window: number of characters in a window.
      batch_size: number of windows scored at once, fewer if their logits would need too much
        memory; does not affect the result.
    """

    window: int = 256
    batch_size: int = 64
    name: ClassVar[str] = "cold"

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Cold":
        return cls(window=config.window, batch_size=config.batch_size)

    @property
    def label(self) -> str:
        return f"cold-{self.window}"

    @property
    def description(self) -> str:
        return f"the split in windows of {self.window} characters, each from a zero carry"

    def losses(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        num_chars = len(tokens) - 1
        length = min(self.window, num_chars)
        most = _most_characters(model)
        if length > most:  # one window at a time, in pieces
            for start in range(0, num_chars, length):
                yield from _pass(params, tokens[start : start + length + 1], model=model)
            return
        rows = min(self.batch_size, -(-num_chars // length), most // length)
        zero_carry = model.initialize_carry(rows)
        for batch, num_targets in segments(tokens, rows=rows, length=length):
            _, losses = eval_step(params, zero_carry, batch, model=model)
            yield jax.device_get(losses).reshape(-1)[:num_targets]


@dataclass(frozen=True)
class Carried(Protocol):
    """One pass over the text, in which the carry is kept."""

    name: ClassVar[str] = "carried"

    @property
    def description(self) -> str:
        return "one pass over the split, in which the carry is kept from beginning to end"

    def losses(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        yield from _pass(params, tokens, model=model)


def _pass(params: Params, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
    """Yields the losses of one text, whose carry is kept; see `Protocol.losses`."""
    carry = model.initialize_carry(1)
    length = min(_SEGMENT, len(tokens) - 1, _most_characters(model))
    for batch, num_targets in segments(tokens, rows=1, length=length):
        carry, losses = eval_step(params, carry, batch, model=model)
        yield jax.device_get(losses).reshape(-1)[:num_targets]


def _most_characters(model: CharRNN) -> int:
    """Returns how many characters may be scored in one call."""
    return max(_LOGITS_BYTES // (4 * model.vocabulary_size), 1)


def segments(tokens: np.ndarray, *, rows: int, length: int) -> Iterator[tuple[Batch, int]]:
    """Yields (batch [rows, length] on the device, number of its targets that are in the text)."""
    for start in range(0, len(tokens) - 1, rows * length):
        piece = np.asarray(tokens[start : start + rows * length + 1], np.int32)
        # Only the last piece can be short. Padding after its end does not change its losses.
        padded = np.zeros(rows * length + 1, np.int32)
        padded[: len(piece)] = piece
        batch = Batch(padded[:-1].reshape(rows, length), padded[1:].reshape(rows, length))
        yield jax.device_put(batch), len(piece) - 1


@partial(jax.jit, static_argnames="model")
def eval_step(
    params: Params, carry: Carry, batch: Batch, *, model: CharRNN
) -> tuple[Carry, jax.Array]:
    """Scores one batch.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      carry: carry before the batch, for B sequences.
      batch: inputs and targets, [B, T] each.
      model: the model.

    Returns:
      (carry after the batch, losses [B, T] in nats).
    """
    carry, logits = forward(params, carry, batch.inputs, model=model)
    return carry, cross_entropy(logits, batch.targets)


for _protocol in (Cold, Carried, Dynamic):
    PROTOCOLS.provide(_protocol.name, _protocol)


def make_protocol(config: ConfigDict, name: str = "") -> Protocol:
    """Makes a protocol with the settings of a config.

    Args:
      config: the `config.evaluation` section.
      name: name of the protocol; "": the one that the config names.

    Raises:
      UserError: no protocol has this name.
    """
    protocol: Protocol = PROTOCOLS[name or config.protocol].from_config(config)
    return protocol


def protocols_in_all() -> list[str]:
    """Returns the names of the protocols that `--protocol=all` includes."""
    return [name for name in PROTOCOLS if PROTOCOLS[name].in_all]


def evaluate(
    params: Params, tokens: np.ndarray, *, model: CharRNN, protocol: Protocol
) -> CrossEntropy:
    """Scores a text under a protocol.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      tokens: [1 + n] ids; the first is only context.
      model: the model.
      protocol: the protocol, such as `Cold(window=256)` or `Carried()`.

    Returns:
      The loss of the n characters, summed in float64.

    Raises:
      UserError: the protocol did not yield one loss for each of the n characters.
    """
    result = CrossEntropy(0.0, 0)
    for losses in _checked_losses(params, tokens, model=model, protocol=protocol):
        result += CrossEntropy.of(losses)
    return result


def char_losses(
    params: Params, tokens: np.ndarray, *, model: CharRNN, protocol: Protocol
) -> np.ndarray:
    """Returns the loss of every character of a text under a protocol.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      tokens: [1 + n] ids; the first is only context.
      model: the model.
      protocol: the protocol, such as `Cold(window=256)` or `Carried()`.

    Returns:
      [n] losses in nats, float32, in the order of the text.

    Raises:
      UserError: the protocol did not yield one loss for each of the n characters.
    """
    result, start = np.empty(max(len(tokens) - 1, 0), np.float32), 0
    for losses in _checked_losses(params, tokens, model=model, protocol=protocol):
        room = result[start : start + losses.size]  # less, if there are too many
        room[:] = losses[: len(room)]
        start += losses.size
    return result


def _checked_losses(
    params: Params, tokens: np.ndarray, *, model: CharRNN, protocol: Protocol
) -> Iterator[np.ndarray]:
    """Yields the losses of a protocol, and raises UserError if there are not n of them."""
    num_losses, num_chars = 0, max(len(tokens) - 1, 0)
    if not num_chars:
        return
    for losses in protocol.losses(params, tokens, model=model):
        num_losses += losses.size
        yield losses
    if num_losses != num_chars:
        raise UserError(
            f"protocol {protocol.name!r} gave {num_losses} losses for {num_chars} characters: it "
            "must yield one for each"
        )
