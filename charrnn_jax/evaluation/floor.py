"""How far a loss is above the floor: the loss of the best possible predictor of a synthetic text.

With p the source of the text and q the model, the excess in nats/char over n characters is

  excess = 1/n sum_t ln p(c_t | past) - ln q(c_t | past)

In the mean it is at least 0 for every model that predicts a character from its past alone, and 0
only for the source itself. exp(-n excess) is a likelihood ratio whose mean is 1, so by Markov's
inequality no such model has an excess below -ln(1000) / n with a probability above 1/1000. A loss
that is below the floor by more than this, and by more than three standard errors, comes from a
model that has seen its targets.
"""

import math
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.data.automata import PREFIX, Source
from charrnn_jax.data.dataset import CorpusIdentity, Dataset
from charrnn_jax.data.sources import parse_source
from charrnn_jax.errors import LeakError
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.evaluation.protocols import char_losses, evaluate
from charrnn_jax.models.char_rnn import CharRNN, Params

_NUM_BLOCKS = 100  # whose means give the standard error
_STANDARD_ERRORS = 3.0
_NATS = math.log(1000)  # an honest model gains more on a text once in a thousand times


@dataclass(frozen=True)
class Excess:
    """A loss, compared with the floor.

    Attributes:
      floor: mean loss of the best predictor on the text, in nats/char.
      entropy_rate: its expected value on a long text, in nats/char.
      excess: mean of (loss - loss of the best predictor), in nats/char.
      standard_error: standard error of `excess`, in nats/char.
      num_chars: number of predicted characters.
    """

    floor: float
    entropy_rate: float
    excess: float
    standard_error: float
    num_chars: int

    @property
    def is_leak(self) -> bool:
        """Whether the loss is further below the floor than chance allows."""
        below = -self.excess
        return below > _STANDARD_ERRORS * self.standard_error and below * self.num_chars > _NATS

    def describe(self, unit: str = "char") -> str:
        """Returns the floor and the excess as text.

        Args:
          unit: what one token is, "char" or "byte".
        """
        return (
            f"floor {self.floor:.4f} nats/{unit} (entropy rate {self.entropy_rate:.4f}), excess "
            f"{self.excess:+.5f}, standard error {self.standard_error:.5f}"
        )

    def to_dict(self) -> dict[str, float]:
        """Returns the comparison as plain data for JSON."""
        return {
            "floor": self.floor,
            "entropy_rate": self.entropy_rate,
            "excess": self.excess,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class Floor:
    """The best predictor of one split of a synthetic text, which knows the text before it, too.

    Attributes:
      source: source of the text.
      split: name of the split.
      losses: [n] losses of the best predictor in nats, of each character that is predicted.
    """

    source: Source
    split: str
    losses: np.ndarray

    def excess(self, losses: np.ndarray) -> Excess:
        """Compares the losses of a model, [n] in nats, with the floor.

        The difference is taken character by character: most of what makes a text hard is in both
        losses. Its standard error is that of the means of contiguous blocks.
        """
        differences = np.asarray(losses, np.float64) - self.losses
        blocks = np.array_split(differences, min(_NUM_BLOCKS, len(differences)))
        means = [block.mean() for block in blocks]
        error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if means[1:] else math.inf
        return Excess(
            floor=float(self.losses.mean()),
            entropy_rate=self.source.entropy_rate,
            excess=float(differences.mean()),
            standard_error=error,
            num_chars=len(differences),
        )

    def check(self, excess: Excess, *, protocol: Protocol) -> None:
        """Raises LeakError if a model has a loss below the floor; it may learn the training split.

        Args:
          excess: comparison of its loss.
          protocol: protocol of the loss.
        """
        if excess.is_leak and self.split != "train":
            raise LeakError(
                f"the loss of the {self.split} split ({protocol.label}) is {-excess.excess:.4f} "
                f"nats/char below the floor of {self.source.full_name}, which no model can beat: "
                "the inputs hold targets, or the model was trained on this text; check the "
                "protocol, the cell, the train step and the splits"
            )


def find_floor(
    dataset: Dataset, split: str, *, of: CorpusIdentity, config: ConfigDict
) -> Floor | None:
    """Returns the floor of a split; None if the source of the text is not known.

    Args:
      dataset: text of the run.
      split: name of the split.
      of: the text as the run records it; it may have been moved since.
      config: the `config.data` section of the run.
    """
    if config.path or not of.name.startswith(PREFIX):
        return None
    source, stop = parse_source(of.name), dataset.splits.ends[split]
    start = stop - (len(dataset.splits.with_context(split)) - 1)  # the first is only context
    kept, position = [np.empty(0)], 0
    for losses in source.optimal_losses(map(str, dataset.corpus.blocks())):
        kept.append(losses[max(start - position, 0) : max(stop - position, 0)])
        position += len(losses)
    return Floor(source, split, np.concatenate(kept))


def evaluate_above(
    floor: Floor | None, params: Params, tokens: np.ndarray, *, model: CharRNN, protocol: Protocol
) -> tuple[CrossEntropy, Excess | None]:
    """Scores a text as `evaluate` does, and compares the loss with the floor, if there is one."""
    if floor is None or len(tokens) < 2:
        return evaluate(params, tokens, model=model, protocol=protocol), None
    losses = char_losses(params, tokens, model=model, protocol=protocol)
    return CrossEntropy.of(losses), floor.excess(losses)
