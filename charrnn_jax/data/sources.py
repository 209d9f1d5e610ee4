"""Synthetic texts whose entropy rate is known, so that it is known how low a loss can be.

A source is written NAME[:ARGUMENT...][:seed=N], such as "markov:2" or "repeat:8:4:seed=1"; as the
name of a corpus it begins with "source:". Knows nothing of files or models.
"""

import dataclasses
import math
import string
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import numpy as np

from charrnn_jax.data.automata import (
    PREFIX,
    ROWS,
    Outcome,
    Source,
    State,
    arguments_of,
    stationary,
    uniform,
)
from charrnn_jax.errors import UserError, shown

_MOST_CONTEXTS = 1 << 10  # of a Markov source
_WORD_CHARS = 11  # that the bounds of the entropy rate of a hidden Markov source look at


def _number(default: float, low: float, high: float) -> Any:
    """Returns the field of an argument, with its default and its smallest and largest value."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def _random_rows(num_rows: int, num_letters: int, *, seed: int) -> list[list[float]]:
    """Returns random probabilities, [num_rows, num_letters], none of them 0.

    They are proportional to 1 + floor(999 u**2), whole numbers, so they are the same everywhere.
    """
    draws = (draw for block in uniform(seed, ROWS) for draw in block.tolist())
    rows = []
    for _ in range(num_rows):
        weights = [1 + int(999 * (u := next(draws)) * u) for _ in range(num_letters)]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


@dataclass(frozen=True)
class Iid(Source):
    """Independent letters with random probabilities. Nothing to remember."""

    letters: int = _number(8, 2, 26)
    name: ClassVar[str] = "iid"
    start: ClassVar[Hashable] = ""

    def outcomes(self, state: State) -> list[Outcome]:
        return [(p, c, "") for p, c in zip(self._row, string.ascii_lowercase, strict=False)]

    @cached_property
    def _row(self) -> list[float]:
        return _random_rows(1, self.letters, seed=self.seed)[0]


@dataclass(frozen=True)
class Markov(Source):
    """Each letter depends on the last `order` letters. The state is these letters."""

    order: int = _number(2, 1, 10)
    letters: int = _number(4, 2, 26)
    name: ClassVar[str] = "markov"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.letters**self.order > _MOST_CONTEXTS:
            raise UserError(
                f"{PREFIX}markov:{self.order}:{self.letters} has {self.letters}**{self.order} "
                f"contexts: give an order and a number of letters with at most {_MOST_CONTEXTS:,}"
            )

    @property
    def start(self) -> Hashable:  # type: ignore[override]
        return "a" * self.order

    def outcomes(self, state: State) -> list[Outcome]:
        return [(p, c, state[1:] + c) for c, p in self._rows[state].items()]

    @cached_property
    def _rows(self) -> dict[str, dict[str, float]]:
        letters = string.ascii_lowercase[: self.letters]
        rows = _random_rows(self.letters**self.order, self.letters, seed=self.seed)
        contexts = map("".join, product(letters, repeat=self.order))
        return {
            c: dict(zip(letters, row, strict=True)) for c, row in zip(contexts, rows, strict=True)
        }


@dataclass(frozen=True)
class GoldenMean(Source):
    """Bits in which no two zeros are neighbours: after a one, each is as likely. h = 2/3 ln 2."""

    name: ClassVar[str] = "golden-mean"
    start: ClassVar[Hashable] = "any"

    def outcomes(self, state: State) -> list[Outcome]:
        if state == "any":
            return [(0.5, "0", "one"), (0.5, "1", "any")]
        return [(1.0, "1", "any")]


@dataclass(frozen=True)
class Even(Source):
    """Bits in which ones come in runs of even length. h = 2/3 ln 2.

    A model must know whether the run so far is even, however long it is: no number of last
    characters tells.

    Source: B. Weiss 1973, "Subshifts of finite type and sofic systems".
    """

    name: ClassVar[str] = "even"
    start: ClassVar[Hashable] = "even"

    def outcomes(self, state: State) -> list[Outcome]:
        if state == "even":
            return [(0.5, "0", "even"), (0.5, "1", "odd")]
        return [(1.0, "1", "even")]


@dataclass(frozen=True)
class NoisyPeriod(Source):
    """The first letters of the alphabet again and again; each is replaced by another one of them
    with probability `noise`. h = H(noise) + noise ln(period - 1)."""

    period: int = _number(8, 2, 26)
    noise: float = _number(0.1, 1e-6, 0.999999)
    name: ClassVar[str] = "noisy-period"
    start: ClassVar[Hashable] = 0

    def outcomes(self, state: State) -> list[Outcome]:
        following = (state + 1) % self.period
        wrong = self.noise / (self.period - 1)
        return [
            (1 - self.noise if place == state else wrong, string.ascii_lowercase[place], following)
            for place in range(self.period)
        ]


@dataclass(frozen=True)
class Repeat(Source):
    """Lines of a random word, the same word again, and a line break.

    The second word repeats what stood `length` characters before, so a model must remember that
    many letters. h = length ln(letters) / (2 length + 1). The state is (the word, so far; number of
    its characters that were repeated).
    """

    length: int = _number(8, 1, 1000)
    letters: int = _number(2, 2, 26)
    name: ClassVar[str] = "repeat"
    start: ClassVar[Hashable] = ("", 0)

    def outcomes(self, state: State) -> list[Outcome]:
        word, repeated = state
        if len(word) < self.length:
            letters = string.ascii_lowercase[: self.letters]
            return [(1 / self.letters, letter, (word + letter, 0)) for letter in letters]
        if repeated < self.length:
            return [(1.0, word[repeated], (word, repeated + 1))]
        return [(1.0, "\n", self.start)]

    @property
    def entropy_rate(self) -> float:
        return self.length * math.log(self.letters) / (2 * self.length + 1)


@dataclass(frozen=True)
class Dyck(Source):
    """Two kinds of brackets, each closed by its own kind, nested at most `depth` deep.

    Opening and closing are equally likely where both are possible, and so are both kinds. The state
    is the brackets that are open. The number of them is a random walk from 0 to d = `depth`, whose
    ends are half as likely as what is between them:

      h = (ln 2 / 2 + (d - 1) (ln 2 + ln 2 / 2)) / d
    """

    depth: int = _number(4, 1, 100)
    name: ClassVar[str] = "dyck"
    start: ClassVar[Hashable] = ""

    def outcomes(self, state: State) -> list[Outcome]:
        opens = 1.0 if not state else 0.5 if len(state) < self.depth else 0.0
        outcomes = [(opens / 2, bracket, state + bracket) for bracket in "(["] if opens else []
        if state:
            outcomes.append((1 - opens, {"(": ")", "[": "]"}[state[-1]], state[:-1]))
        return outcomes

    @property
    def entropy_rate(self) -> float:
        return (0.5 + 1.5 * (self.depth - 1)) * math.log(2) / self.depth


@dataclass(frozen=True)
class HiddenMarkov(Source):
    """Three hidden states in a circle, each of which prefers a letter.

    A state emits its own letter with probability 0.8, each other one with 0.1; then it is kept with
    probability 0.8, else the next one follows. No formula for h is known. With s the first state,

      H(c_n | c_1 ... c_{n-1}, s) <= h <= H(c_n | c_1 ... c_{n-1})

    Source: Cover & Thomas, "Elements of Information Theory", theorem 4.5.1.
    """

    name: ClassVar[str] = "hidden-markov"
    start: ClassVar[Hashable] = 0

    def outcomes(self, state: State) -> list[Outcome]:
        return [
            (emitted * moved, letter, following)
            for letter, emitted in zip("abc", np.roll([0.8, 0.1, 0.1], state).tolist(), strict=True)
            for following, moved in ((state, 0.8), ((state + 1) % 3, 0.2))
        ]

    @cached_property
    def entropy_bounds(self) -> tuple[float, float]:
        """What the entropy rate lies between, in nats/char."""
        joint = np.zeros((3, 3, 3))  # [character, state, next state]
        for state in range(3):
            for probability, letter, following in self.outcomes(state):
                joint["abc".index(letter), state, following] += probability
        first = stationary(joint.sum(0))
        words = np.diag(first)[:, None]  # [first state, word, state]: their probabilities
        low = high = 0.0
        for _ in range(_WORD_CHARS):
            shorter = words.sum(-1)
            words = np.einsum("iws,cst->iwct", words, joint).reshape(3, -1, 3)
            longer = words.sum(-1)
            low = _entropy(longer) - _entropy(shorter)
            high = _entropy(longer.sum(0)) - _entropy(shorter.sum(0))
        return low, high

    @property
    def entropy_rate(self) -> float:
        return sum(self.entropy_bounds) / 2

    @property
    def entropy_error(self) -> float:
        low, high = self.entropy_bounds
        return (high - low) / 2


def _entropy(probabilities: np.ndarray) -> float:
    return float(-(probabilities * np.log(probabilities)).sum())


SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (Iid, Markov, GoldenMean, Even, NoisyPeriod, Repeat, Dyck, HiddenMarkov)
}


def usage(kind: type[Source]) -> str:
    """Returns how a kind of source is written, such as "markov[:ORDER[:LETTERS]]"."""
    *arguments, _ = (field.name.upper() for field in arguments_of(kind))
    return "[:".join([kind.name, *arguments]) + "]" * len(arguments)


def parse_source(name: str) -> Source:
    """Returns the source of a name.

    Args:
      name: name as a corpus, "source:NAME[:ARGUMENT...][:seed=N]". Arguments that are left out have
        their defaults.

    Raises:
      UserError: there is no such source, or an argument is not valid.
    """
    kind_name, *values = name.removeprefix(PREFIX).split(":")
    if (kind := SOURCES.get(kind_name)) is None:
        raise UserError(f"there is no source {shown(kind_name)}; there are {', '.join(SOURCES)}")
    *fields, seed = arguments_of(kind)
    arguments: dict[str, Any] = {}
    if values and values[-1].startswith("seed="):
        arguments["seed"] = _parse(values.pop().removeprefix("seed="), seed, name)
    if len(values) > len(fields):
        raise UserError(
            f"{shown(name)} has too many arguments: give {PREFIX}{usage(kind)}[:seed=N]"
        )
    for field, value in zip(fields, values, strict=False):
        arguments[field.name] = _parse(value, field, name)
    return kind(**arguments)


def _parse(text: str, field: dataclasses.Field[Any], name: str) -> int | float:
    is_whole = isinstance(field.default, int)
    try:
        return int(text) if is_whole else float(text)
    except ValueError as error:
        number = "a whole number" if is_whole else "a number"
        raise UserError(
            f"the {field.name} of {shown(name)} is {shown(text)}; it must be {number}"
        ) from error
