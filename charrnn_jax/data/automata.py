"""`Source`: an automaton that writes a text, and what follows from its probabilities.

In each state the automaton emits a character and goes to another state, with known probabilities;
it begins in a known state. That is enough to draw a text, to compute the loss of the best possible
predictor on it, and to compute the entropy rate, which no predictor can beat on average:

  h = lim -1/n E[ln p(c_1 ... c_n)]   nats/char
"""

import dataclasses
import math
from bisect import bisect
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from charrnn_jax.errors import UserError

PREFIX = "source:"  # of the name of a corpus that is a source
_BLOCK_CHARS = 1 << 16  # drawn at once
_CACHED_STATES = 1 << 12
ROWS, TEXT = 0, 1  # what random numbers are for

State = Any  # hashable
Outcome = tuple[float, str, State]  # probability, character, next state


def uniform(seed: int, purpose: int) -> Iterator[np.ndarray]:
    """Yields blocks of numbers in [0, 1), the same on every machine and with every NumPy."""
    bits = np.random.PCG64([seed, purpose])  # its bits are promised to stay; those above are not
    while True:
        yield (bits.random_raw(_BLOCK_CHARS) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Source:
    """Base class of sources.

    A subclass is *unifilar* if a state and a character determine the next state. If it has many
    states, or is not unifilar, it defines its own `entropy_rate`.

    Attributes:
      name: name of the kind of source.
      start: state before the first character.
      seed: seed of the text, and of the probabilities if they are random.
    """

    name: ClassVar[str]
    start: ClassVar[Hashable]
    seed: int = dataclasses.field(default=0, kw_only=True, metadata={"low": 0, "high": 2**31 - 1})

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, low, high = getattr(self, field.name), *map(field.metadata.get, ("low", "high"))
            if low is not None and not low <= value <= high:
                raise UserError(
                    f"the {field.name} of {PREFIX}{self.name} is {value}; it must be from {low} to "
                    f"{high}"
                )

    def outcomes(self, state: State) -> list[Outcome]:
        """Returns what may follow a state: (probability, character, next state) of each outcome."""
        raise NotImplementedError

    @property
    def entropy_rate(self) -> float:
        """Entropy rate in nats/char: the mean over the stationary distribution of the states."""
        states = [self.start]
        index = {self.start: 0}
        for state in states:  # which grows: all that can be reached
            for _, _, following in self.outcomes(state):
                if following not in index:
                    index[following] = len(states)
                    states.append(following)
        transitions = np.zeros((len(states), len(states)))
        entropies = np.zeros(len(states))
        for row, state in enumerate(states):
            for probability, _, following in self.outcomes(state):
                transitions[row, index[following]] += probability
                entropies[row] -= probability * math.log(probability)
        return float(stationary(transitions) @ entropies)

    @property
    def entropy_error(self) -> float:
        """Largest error of `entropy_rate`, in nats/char; 0: it is exact."""
        return 0.0

    @property
    def full_name(self) -> str:
        """Name with all arguments, as a corpus: "source:markov:2:4:seed=0"."""
        *arguments, seed = (str(getattr(self, field.name)) for field in arguments_of(type(self)))
        return PREFIX + ":".join([self.name, *arguments, f"seed={seed}"])

    def blocks(self, num_chars: int) -> Iterator[str]:
        """Yields a text in blocks. A longer text begins with the shorter one."""
        state: State = self.start

        @lru_cache(_CACHED_STATES)
        def table(state: State) -> tuple[list[float], list[Outcome]]:
            outcomes = self.outcomes(state)
            return list(accumulate(p for p, _, _ in outcomes))[:-1], outcomes

        for draws in uniform(self.seed, TEXT):
            characters = []
            for draw in draws[:num_chars].tolist():
                cumulated, outcomes = table(state)
                _, character, state = outcomes[bisect(cumulated, draw)]
                characters.append(character)
            yield "".join(characters)
            num_chars -= len(characters)
            if not num_chars:
                return

    def generate(self, num_chars: int) -> str:
        """Returns the first characters of the text."""
        return "".join(self.blocks(num_chars))

    def optimal_losses(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """Computes -ln p(c_t | c_1 ... c_{t-1}), by the forward algorithm.

        With a the probability of each state s, given the characters so far:

          p(c) = sum_s a_s p(c, s' | s), over all s and s'
          a'_s' = sum_s a_s p(c, s' | s) / p(c)

        Args:
          blocks: a text from its beginning, in pieces.

        Yields:
          The losses in nats of each block, [num_chars].

        Raises:
          UserError: the text cannot come from this source.
        """

        @lru_cache(_CACHED_STATES)
        def table(state: State) -> dict[str, list[tuple[float, State]]]:
            by_character: dict[str, list[tuple[float, State]]] = {}
            for probability, character, following in self.outcomes(state):
                by_character.setdefault(character, []).append((probability, following))
            return by_character

        belief: dict[State, float] = {self.start: 1.0}
        position = 0
        for block in blocks:
            losses = np.empty(len(block))
            for i, character in enumerate(block):
                after: dict[State, float] = {}
                for state, weight in belief.items():
                    for probability, following in table(state).get(character, ()):
                        after[following] = after.get(following, 0.0) + weight * probability
                if not (total := sum(after.values())):
                    raise UserError(
                        f"character {position + i + 1:,} of the text, {character!r}, cannot come "
                        f"from {self.full_name}: give the text of this source"
                    )
                losses[i] = -math.log(total)
                belief = {state: weight / total for state, weight in after.items()}
            position += len(block)
            yield losses


def stationary(transitions: np.ndarray) -> np.ndarray:
    """Returns the stationary distribution pi of a matrix P in which all states can be reached, [S].

    pi P = pi and sum(pi) = 1 are one system, pi (I - P + 1) = (1, ..., 1), 1 being all ones.
    """
    num_states = len(transitions)
    return np.linalg.solve((np.eye(num_states) - transitions + 1).T, np.ones(num_states))


def arguments_of(kind: type[Source]) -> list[dataclasses.Field[Any]]:
    """Returns the fields of a kind of source, the seed last."""
    seed, *others = dataclasses.fields(kind)
    return [*others, seed]
