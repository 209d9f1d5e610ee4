"""Cross-entropy, kept as a sum and a count until it is reported."""

import math
from typing import Any

import jax
import numpy as np
import optax
from flax import struct
from jax.typing import ArrayLike

from charrnn_jax.registry import LOSSES
from charrnn_jax.tables import table


def cross_entropy(logits: jax.Array, targets: ArrayLike) -> jax.Array:
    """Returns -log softmax(logits)[target] for each target.

    Args:
      logits: [..., V] logits of the next token.
      targets: [...] ids of the next token.

    Returns:
      [...] losses in nats.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


LOSSES.provide("cross_entropy", cross_entropy)


@struct.dataclass
class CrossEntropy:
    """The loss of a number of predicted characters; `a + b` is the loss of both texts together.

    Attributes:
      total: loss in nats, summed over the characters.
      count: number of predicted characters.
    """

    total: Any
    count: Any

    @classmethod
    def of(cls, losses: np.ndarray) -> "CrossEntropy":
        """Returns the sum, in float64, and the count of losses in nats."""
        return cls(float(losses.sum(dtype=np.float64)), losses.size)

    def __add__(self, other: "CrossEntropy") -> "CrossEntropy":
        return CrossEntropy(self.total + other.total, self.count + other.count)

    @property
    def nats_per_char(self) -> float:
        """Mean loss in nats per character; NaN if the count is 0."""
        return float(self.total) / float(self.count) if self.count else math.nan

    @property
    def bits_per_char(self) -> float:
        """Mean loss in bits per character: nats / ln 2."""
        return self.nats_per_char / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats per character): the number of equally likely characters with this loss."""
        return math.exp(min(self.nats_per_char, 700.0))

    def describe_perplexity(self) -> str:
        """Returns the perplexity as text, such as "4.387" or, from a million on, "1.230e+45"."""
        exponent = self.nats_per_char / math.log(10)
        if not exponent >= 6:  # also if it is not a number
            return f"{self.perplexity:.3f}"
        power = math.floor(exponent)
        return f"{10 ** (exponent - power):.3f}e+{power:02}"

    def describe(self, unit: str = "char") -> str:
        """Returns the mean loss as text, such as "1.4786 nats/char, 2.1332 bits/char".

        Args:
          unit: what one token is, "char" or "byte".
        """
        return f"{self.nats_per_char:.4f} nats/{unit}, {self.bits_per_char:.4f} bits/{unit}"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the loss."""
        facts = [
            ("nats/char", f"{self.nats_per_char:.4f}"),
            ("bits/char", f"{self.bits_per_char:.4f}"),
            ("perplexity", self.describe_perplexity()),
            ("characters", f"{int(self.count):,}"),
        ]
        return table(facts)

    def to_dict(self) -> dict[str, float]:
        """Returns the mean loss and the number of characters, as plain data for JSON."""
        return {
            "nats_per_char": self.nats_per_char,
            "bits_per_char": self.bits_per_char,
            "perplexity": self.perplexity,
            "num_chars": int(self.count),
        }
