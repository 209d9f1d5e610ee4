"""Cross-entropy as a sum and a count, until the moment it is shown."""

import math
from typing import Any

import jax
import optax
from flax import struct
from jax.typing import ArrayLike

from charrnn_jax.registry import LOSSES


def cross_entropy(logits: jax.Array, targets: ArrayLike) -> jax.Array:
    """-log softmax(logits)[target], from logits.

    Args:
      logits: [..., V].
      targets: [...] ids.

    Returns:
      [...] losses in nats.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


LOSSES.provide("cross_entropy", cross_entropy)


@struct.dataclass
class CrossEntropy:
    """The loss of a number of predicted characters. Addition joins two of them.

    Attributes:
      total: nats, summed over the characters.
      count: characters.
    """

    total: Any
    count: Any

    def __add__(self, other: "CrossEntropy") -> "CrossEntropy":
        return CrossEntropy(self.total + other.total, self.count + other.count)

    @property
    def nats_per_char(self) -> float:
        """Mean loss in nats a character; NaN if nothing was counted."""
        return float(self.total) / float(self.count) if self.count else math.nan

    @property
    def bits_per_char(self) -> float:
        """Mean loss in bits a character: nats / ln 2."""
        return self.nats_per_char / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats a character): as uncertain as among so many equally likely characters."""
        return math.exp(min(self.nats_per_char, 700.0))

    def describe(self, unit: str = "char") -> str:
        """Returns e.g. "1.4786 nats/char, 2.1332 bits/char"; unit: "char", or "byte"."""
        return f"{self.nats_per_char:.4f} nats/{unit}, {self.bits_per_char:.4f} bits/{unit}"

    def to_dict(self) -> dict[str, float]:
        """Returns what is reported, as plain data for JSON."""
        return {
            "nats_per_char": self.nats_per_char,
            "bits_per_char": self.bits_per_char,
            "perplexity": self.perplexity,
            "num_chars": int(self.count),
        }
