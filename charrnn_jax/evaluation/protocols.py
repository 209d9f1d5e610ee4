"""Whole-text evaluation: what context each character is predicted from.

A protocol is a frozen dataclass of its settings that yields the loss of every character:

  cold     the text in windows, each from a zero carry and the one character before it: what nanoGPT
           reports
  carried  one pass over the whole text; the carry is kept from beginning to end

Every character after the first is counted exactly once, the tail included. Losses of different
protocols must not be compared. Knows a model and token arrays, not where they came from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.models.char_rnn import Carry, CharRNN, forward
from charrnn_jax.registry import PROTOCOLS

_SEGMENT = 1024  # characters a call of the carried pass; the result does not depend on it


@dataclass(frozen=True)
class Protocol:
    """What all protocols have in common.

    Attributes:
      name: that a config uses.
      in_all: whether `charrnn evaluate --protocol=all` means this one, too; False for an expensive
        one, which is then evaluated only where it is asked for by name.
    """

    name: ClassVar[str]
    in_all: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Protocol":
        """Makes one with the settings of a `config.evaluation` section."""
        return cls()

    @property
    def label(self) -> str:
        """The name under which its losses are reported: different settings, different labels."""
        return self.name

    @property
    def description(self) -> str:
        """What it does with a split, in words."""
        raise NotImplementedError

    def losses(self, params: Any, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        """Yields -log p(tokens[i] | context) for i = 1, 2, ... in order, in pieces.

        Args:
          params: parameters of the model.
          tokens: [1 + n] ids, n at least 1; the first is context only.
          model: the module.

        Yields:
          [k] losses in nats; n in all.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Cold(Protocol):
    """Windows of the text, each from a zero carry.

    Attributes:
      window: length of a window, in characters.
      batch_size: windows that are scored at once; does not change the result.
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
        return f"the split cut into windows of {self.window} characters, each from a zero carry"

    def losses(self, params: Any, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        num_chars = len(tokens) - 1
        length = min(self.window, num_chars)
        rows = min(self.batch_size, -(-num_chars // length))
        zero_carry = model.initialize_carry(rows)
        for batch, num_targets in _segments(tokens, rows=rows, length=length):
            _, losses = eval_step(params, zero_carry, batch, model=model)
            yield jax.device_get(losses).reshape(-1)[:num_targets]


@dataclass(frozen=True)
class Carried(Protocol):
    """One pass over the text, the carry kept."""

    name: ClassVar[str] = "carried"

    @property
    def description(self) -> str:
        return "one pass over the split, the carry kept from beginning to end"

    def losses(self, params: Any, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        carry = model.initialize_carry(1)
        length = min(_SEGMENT, len(tokens) - 1)
        for batch, num_targets in _segments(tokens, rows=1, length=length):
            carry, losses = eval_step(params, carry, batch, model=model)
            yield jax.device_get(losses).reshape(-1)[:num_targets]


def _segments(tokens: np.ndarray, *, rows: int, length: int) -> Iterator[tuple[Batch, int]]:
    """Yields (batch [rows, length] on the device, how many of its targets are the text's)."""
    for start in range(0, len(tokens) - 1, rows * length):
        piece = np.asarray(tokens[start : start + rows * length + 1], np.int32)
        # Only the last piece is shorter. Padding after the end changes nothing before it.
        padded = np.zeros(rows * length + 1, np.int32)
        padded[: len(piece)] = piece
        batch = Batch(padded[:-1].reshape(rows, length), padded[1:].reshape(rows, length))
        yield jax.device_put(batch), len(piece) - 1


@partial(jax.jit, static_argnames="model")
def eval_step(params: Any, carry: Carry, batch: Batch, *, model: CharRNN) -> tuple[Carry, Any]:
    """Scores one batch.

    Args:
      params: parameters of the model.
      carry: carry before the batch, for B sequences.
      batch: inputs and targets [B, T].
      model: the module.

    Returns:
      (carry after the batch, losses [B, T] in nats).
    """
    carry, logits = forward(params, carry, batch.inputs, model=model)
    return carry, cross_entropy(logits, batch.targets)


for _protocol in (Cold, Carried):
    PROTOCOLS.provide(_protocol.name, _protocol)


def make_protocol(config: ConfigDict, name: str = "") -> Protocol:
    """Makes the protocol of a `config.evaluation` section, or another one with its settings.

    Raises:
      UserError: no protocol has this name.
    """
    protocol: Protocol = PROTOCOLS[name or config.protocol].from_config(config)
    return protocol


def protocols_in_all() -> list[str]:
    """Returns the names of the protocols that "all" means."""
    return [name for name in PROTOCOLS if PROTOCOLS[name].in_all]


def evaluate(
    params: Any, tokens: np.ndarray, *, model: CharRNN, protocol: Protocol
) -> CrossEntropy:
    """Scores tokens[1:] under a protocol.

    Args:
      params: parameters of the model.
      tokens: [1 + n] ids; the first is context only.
      model: the module.
      protocol: such as `Cold(window=256)` or `Carried()`.

    Returns:
      The loss, summed in float64, and the number of characters, n.

    Raises:
      UserError: the protocol did not give a loss for each of the n characters.
    """
    result, num_chars = CrossEntropy(0.0, 0), max(len(tokens) - 1, 0)
    if not num_chars:
        return result
    for losses in protocol.losses(params, tokens, model=model):
        result += CrossEntropy(float(losses.sum(dtype=np.float64)), losses.size)
    if result.count != num_chars:
        raise UserError(
            f"protocol {protocol.name!r} gave {result.count} losses for {num_chars} characters: it "
            "must yield one for each"
        )
    return result
