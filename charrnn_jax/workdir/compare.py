"""`compare`: whether runs differ on the same characters, and where their differences come from."""

import itertools
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from charrnn_jax.data.dataset import Dataset
from charrnn_jax.data.vocabulary import UnknownCharacterError, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.breakdown import CONTEXT_CHARS, Group, break_down, most_different
from charrnn_jax.evaluation.comparison import (
    MIN_BLOCKS,
    Difference,
    holm,
    paired_difference,
    standard_error,
)
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.evaluation.protocols import Cold, char_losses
from charrnn_jax.tables import table
from charrnn_jax.workdir.run import Run
from charrnn_jax.workdir.tuned import tuned_protocol

_NOUNS = {"char": "characters", "byte": "bytes"}
_NOTABLE = 0.25  # correlation of neighbouring blocks that is worth a sentence
LETTERS = string.ascii_uppercase  # what runs are called, in the order given
COMPARES_RUNS = (
    "This compares runs, not configurations: another seed can change a loss as much. "
    "charrnn sweep compares configurations over seeds."
)
MAX_RUNS = 20  # 190 pairs: with more, the smallest p that the resamples can give is not small


@dataclass(frozen=True)
class Scored:
    """A run and its loss.

    Attributes:
      name: workdir of the run.
      step: step of the checkpoint.
      loss: mean loss in nats/char.
      standard_error: standard error of the loss; see `evaluation.comparison.standard_error`.
    """

    name: str
    step: int
    loss: float
    standard_error: float


@dataclass(frozen=True)
class Excerpt:
    """A passage of the text on which two runs differ much.

    Attributes:
      start: position of the passage in the split, in characters from 0.
      nats: difference A minus B, summed over the passage.
      before: text before it.
      passage: the passage.
      after: text after it.
    """

    start: int
    nats: float
    before: str
    passage: str
    after: str


@dataclass(frozen=True)
class Pair:
    """The comparison of two runs, A and B.

    Attributes:
      first: number of run A, from 0, in the order given.
      second: number of run B.
      difference: loss of A minus loss of B.
      corrected_p: p of the difference, with Holm's correction over all pairs.
      num_pairs: number of pairs in the comparison.
      groups: what groups of characters contribute to the difference.
      excerpts: passages that differ most, the largest difference first.
    """

    first: int
    second: int
    difference: Difference
    corrected_p: float
    num_pairs: int
    groups: tuple[Group, ...]
    excerpts: tuple[Excerpt, ...]

    @property
    def is_real(self) -> bool:
        """Whether the difference is more than the choice of the text explains."""
        return self.corrected_p < 0.05

    def describe(self, names: Sequence[str], *, unit: str) -> str:
        """Returns the result in a sentence.

        Args:
          names: what to call the runs, in the order given.
          unit: what one token is, "char" or "byte".
        """
        found = self.difference
        first, second = names[self.first], names[self.second]
        if found.low == found.high == 0:
            return f"{first} and {second} have the same losses on this text."
        corrected = ""
        if self.num_pairs > 1:
            corrected = f"; p = {self.corrected_p:.2g}, corrected for {self.num_pairs} pairs"
        if not self.is_real:
            return (
                f"No difference can be shown: {first} - {second} is {found.mean:+.4f} "
                f"nats/{unit}, 95% interval {found.low:+.4f} to {found.high:+.4f}{corrected}."
            )
        better, worse = (first, second) if found.mean < 0 else (second, first)
        low, high = sorted((abs(found.low), abs(found.high)))
        return (
            f"{better} is better than {worse} by {abs(found.mean):.4f} nats/{unit}: the 95% "
            f"interval, {low:.4f} to {high:.4f}, does not contain 0{corrected}."
        )

    def describe_power(self, names: Sequence[str], *, unit: str) -> str:
        """Returns what differences the text can show, in sentences; see `Difference.detectable`.

        Args:
          names: what to call the runs, in the order given.
          unit: what one token is, "char" or "byte".
        """
        found = self.difference
        num_blocks, noun = found.num_chars // found.block_length, _NOUNS[unit]
        text = (
            f"Between {names[self.first]} and {names[self.second]}, about 4 of 5 such texts would "
            f"show a true difference of {found.detectable:.4f} nats/{unit}; much smaller ones "
            f"would usually be missed. Errors are from {num_blocks} blocks of "
            f"{found.block_length:,} {noun}."
        )
        if found.correlation > _NOTABLE:
            text += (
                f" Neighbouring blocks are still correlated ({found.correlation:.2f}): the text "
                "has few independent parts. The errors allow for that as far as so few can tell."
            )
        return text


@dataclass(frozen=True)
class Comparison:
    """The comparison of runs on one text.

    Attributes:
      split: name of the split.
      protocol: label of the protocol.
      unit: what one token is, "char" or "byte".
      num_chars: number of characters (or bytes) that were scored.
      corpus: description of the text.
      runs: the runs, in the order given.
      pairs: every pair of runs, the first of each pair being the one that was given first.
    """

    split: str
    protocol: str
    unit: str
    num_chars: int
    corpus: str
    runs: tuple[Scored, ...]
    pairs: tuple[Pair, ...]

    @property
    def noun(self) -> str:
        """What the tokens are, "characters" or "bytes"."""
        return _NOUNS[self.unit]

    def ranked_pairs(self) -> list[Pair]:
        """Returns the pairs: the best run with the second, the best with the third, ..."""
        ranked = sorted(range(len(self.runs)), key=lambda number: self.runs[number].loss)
        return sorted(
            self.pairs, key=lambda pair: sorted(map(ranked.index, (pair.first, pair.second)))
        )

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the comparison."""
        runs = [
            (letter, run.name, f"{run.loss:.4f} ± {run.standard_error:.4f}")
            for letter, run in zip(LETTERS, self.runs, strict=False)
        ]
        pairs = [
            (LETTERS[pair.first] + LETTERS[pair.second], pair.describe(LETTERS, unit=self.unit))
            for pair in self.pairs
        ]
        where = f"{self.split} {self.protocol}, {self.num_chars:,} {self.noun}"
        header = ("", where, f"nats/{self.unit} ± standard error")
        return table(runs, header=header) + table(pairs)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON."""
        data = asdict(self)
        for pair, saved in zip(self.pairs, data["pairs"], strict=True):
            saved["is_real"] = pair.is_real
            saved["difference"]["detectable"] = pair.difference.detectable
        return data


def compare(
    *runs: Run,
    split: str = "validation",
    protocol: str | Protocol = "carried",
    path: str = "",
    max_chars: int = 0,
) -> Comparison:
    """Compares runs on the same characters under the same protocol, in pairs.

    The models are fixed and the text is the sample: an interval says whether the difference would
    be there on other text of the same kind. It compares runs, not configurations: whether one
    configuration is better than another is a question over seeds.

    Args:
      *runs: runs, as returned by `load_run`, at least two.
      split: "train", "validation" or "test".
      protocol: name of a protocol, with the settings that all of the runs have, or a protocol.
      path: path of the text, if it was moved; imported runs need one.
      max_chars: number of characters to score, from the start of the split; 0: all.

    Raises:
      UserError: there are fewer than two runs or more than 20, the runs do not have the same text,
        split, kind of vocabulary and protocol, the text is missing or too short, or a run does not
        know a character of it.
    """
    if not 2 <= len(runs) <= MAX_RUNS:
        raise UserError(f"a comparison needs 2 to {MAX_RUNS} runs, not {len(runs)}")
    opened = [_open(run, protocol, path) for run in runs]
    for other in opened[1:]:
        _check_same(opened[0], other)
    tokens = [each.dataset.splits.with_context(split) for each in opened]
    if max_chars:
        tokens = [each[: 1 + max_chars] for each in tokens]
    if (num_chars := max(len(tokens[0]) - 1, 0)) < 2 * MIN_BLOCKS:
        raise UserError(
            f"the {split} split of {runs[0].workdir} has {num_chars} {runs[0].vocabulary.kind} to "
            f"score: a comparison needs {2 * MIN_BLOCKS}"
        )
    losses = [_losses(*each) for each in zip(opened, tokens, strict=True)]
    return Comparison(
        split=split,
        protocol=opened[0].protocol.label,
        unit=runs[0].vocabulary.unit,
        num_chars=num_chars,
        corpus=opened[0].dataset.identity().describe(),
        runs=tuple(
            Scored(str(run.workdir), run.step, float(each.mean(dtype=float)), standard_error(each))
            for run, each in zip(runs, losses, strict=True)
        ),
        pairs=_pairs(runs, losses, tokens[0][1:], protocol=opened[0].protocol),
    )


class _Opened(NamedTuple):
    """A run, its text, and the protocol with its settings."""

    run: Run
    dataset: Dataset
    protocol: Protocol


def _open(run: Run, protocol: str | Protocol, path: str) -> _Opened:
    if not isinstance(protocol, Protocol):
        protocol = tuned_protocol(run, protocol)
    try:
        return _Opened(run, run.load_dataset(path), protocol)
    except UnknownCharacterError as error:
        raise UserError(f"{run.workdir} cannot score the text: {error}") from error


def _check_same(first: _Opened, other: _Opened) -> None:
    """Raises UserError if two runs would not score the same characters in the same way."""
    a, b = first.run, other.run
    if a.vocabulary.kind != b.vocabulary.kind:
        raise UserError(
            f"{a.workdir} predicts {a.vocabulary.kind} and {b.workdir} {b.vocabulary.kind}: give "
            "runs that predict the same"
        )
    texts = first.dataset.identity(), other.dataset.identity()
    if len({(text.sha256, text.num_chars) for text in texts}) > 1:
        raise UserError(
            f"{a.workdir} and {b.workdir} have different texts: {texts[0].describe()}; "
            f"{texts[1].describe()}: give runs of one text"
        )
    if first.dataset.splits.ends != other.dataset.splits.ends:
        raise UserError(
            f"{a.workdir} and {b.workdir} split the text at different places: give runs with the "
            "same data.validation_fraction and data.test_fraction"
        )
    labels = first.protocol.label, other.protocol.label
    if labels[0] != labels[1]:
        raise UserError(
            f"{a.workdir} is evaluated by {labels[0]} and {b.workdir} by {labels[1]}: give another "
            "--protocol, such as carried"
        )


def _losses(opened: _Opened, tokens: np.ndarray) -> np.ndarray:
    run = opened.run
    train = opened.dataset.splits["train"]
    protocol = opened.protocol.fit(run.params, train, model=run.model)
    losses = char_losses(run.params, tokens, model=run.model, protocol=protocol)
    if not np.isfinite(losses).all():
        raise UserError(
            f"{run.workdir}, step {run.step:,}, has losses that are not finite: choose another "
            "checkpoint"
        )
    return losses


def _pairs(
    runs: Sequence[Run], losses: Sequence[np.ndarray], targets: np.ndarray, *, protocol: Protocol
) -> tuple[Pair, ...]:
    text, positions = _decode(targets, runs[0].vocabulary)
    characters = "".join([text[position] for position in positions])
    window = protocol.window if isinstance(protocol, Cold) else 0
    indices = list(itertools.combinations(range(len(runs)), 2))
    differences = [paired_difference(losses[a], losses[b]) for a, b in indices]
    corrected = holm([difference.p for difference in differences])
    return tuple(
        Pair(
            first=a,
            second=b,
            difference=difference,
            corrected_p=p,
            num_pairs=len(indices),
            groups=tuple(break_down(losses[a], losses[b], characters, window=window)),
            excerpts=tuple(_excerpts(losses[a], losses[b], text, positions)),
        )
        for (a, b), difference, p in zip(indices, differences, corrected, strict=True)
    )


def _decode(tokens: np.ndarray, vocabulary: Vocabulary) -> tuple[str, np.ndarray]:
    """Returns (text, [n] position in it of the character that each token is, or is a byte of)."""
    if vocabulary.kind == "characters":
        return vocabulary.decode(tokens), np.arange(len(tokens))
    text = (tokens - 1).astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")
    sizes = [len(character.encode("utf-8", "surrogateescape")) for character in text]
    return text, np.repeat(np.arange(len(text)), sizes)


def _excerpts(
    losses: np.ndarray, others: np.ndarray, text: str, positions: np.ndarray
) -> list[Excerpt]:
    excerpts = []
    for passage in most_different(losses, others):
        # Whole characters: the passage may begin or end inside one.
        start, end = int(positions[passage.start]), int(positions[passage.end - 1]) + 1
        parts = text[max(start - CONTEXT_CHARS, 0) : start], text[start:end]
        after = text[end : end + CONTEXT_CHARS]
        excerpts.append(Excerpt(passage.start, passage.nats, *map(_valid, (*parts, after))))
    return excerpts


def _valid(text: str) -> str:
    """Returns a text with U+FFFD for each byte that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
