"""A network and an n-gram model together: the mean of their probabilities, with a weight.

  p(c) = w p_network(c) + (1 - w) p_ngram(c)

The weight is chosen on the end of the training text, with an n-gram model of the text before it.
The network was trained on that end and the n-gram model has not seen it, so the weight leans to the
network; a weight that is chosen on the evaluated split would be tuned on the test.
"""

from dataclasses import dataclass

import numpy as np

from charrnn_jax.evaluation.baselines import matching_losses
from charrnn_jax.evaluation.ngram import KneserNey
from charrnn_jax.evaluation.protocols import Protocol, score
from charrnn_jax.models.char_rnn import CharRNN, Params

_MOST_TUNED = 50_000  # characters at the end of the training text
_LARGEST_RATIO = 100.0  # of two losses, in nats: beyond it exp would overflow


@dataclass(frozen=True)
class Tuner:
    """Chooses the weight of the network.

    Attributes:
      ngram: n-gram model of the beginning of the training text.
      tokens: [1 + n] ids of the rest, with the character before it.
    """

    ngram: KneserNey
    tokens: np.ndarray

    @classmethod
    def make(cls, train: np.ndarray, *, order: int, vocabulary_size: int) -> "Tuner":
        """Keeps a tenth of a training text, but at most 50,000 characters, and counts the rest.

        Args:
          train: [num_chars] ids.
          order: order of the n-gram model.
          vocabulary_size: V, the number of ids.
        """
        start = len(train) - min(len(train) // 10, _MOST_TUNED)
        ngram = KneserNey.fit(train[:start], order=order, vocabulary_size=vocabulary_size)
        return cls(ngram, train[max(start - 1, 0) :])

    def weight(self, params: Params, *, model: CharRNN, protocol: Protocol) -> float:
        """Returns the best weight of the network on the kept characters, from 0 to 1.

        Args:
          params: parameters of the network.
          model: the network.
          protocol: protocol under which both are scored.

        Raises:
          ValueError: an n-gram model has nothing like this protocol.
        """
        counted = matching_losses(self.ngram, self.tokens, protocol)
        if counted is None:
            raise ValueError(f"the protocol {protocol.label} does not suit an n-gram model")
        pieces = score(params, self.tokens, model=model, protocol=protocol)
        return best_weight(np.concatenate(list(pieces)), counted)


def interpolate(first: np.ndarray, second: np.ndarray, *, weight: float) -> np.ndarray:
    """Returns the losses of the mean of two models' probabilities.

    Args:
      first: [num_chars] losses of one model, in nats.
      second: [num_chars] losses of the other.
      weight: weight of the first, from 0 to 1.

    Returns:
      [num_chars] losses in nats, float64.
    """
    with np.errstate(divide="ignore"):  # a weight of 0 or 1
        weights = np.log([weight, 1 - weight])
    first, second = (np.asarray(losses, np.float64) for losses in (first, second))
    return -np.logaddexp(weights[0] - first, weights[1] - second)


def best_weight(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the weight of the first of two models with which `interpolate` loses least.

    The mean loss is convex in the weight, so its derivative is bisected:

      d/dw mean(-log(w p + (1 - w) q)) = -mean((r - 1) / (w r + 1 - w)),   r = p / q

    Args:
      first: [num_chars] losses of one model, in nats, at least one.
      second: [num_chars] losses of the other.
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    ratio = np.exp(np.clip(difference, -_LARGEST_RATIO, _LARGEST_RATIO))
    low, high = 0.0, 1.0
    for _ in range(30):
        weight = (low + high) / 2
        if np.mean((ratio - 1) / (weight * ratio + 1 - weight)) > 0:
            low = weight
        else:
            high = weight
    return (low + high) / 2
