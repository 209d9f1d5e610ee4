"""`judge`: how good generated text is, measured against the training text and real held-out text.

Every figure is computed for each text, and averaged over texts. Real text is cut into blocks that
are as long as the generated texts. Intervals are bootstrapped over texts, and over blocks. Knows
strings only, not where they come from.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.copies import longest_matches, overlap
from charrnn_jax.evaluation.ngram import KneserNey

LENGTHS = (8, 12, 16, 20, 30)  # of the n-grams, in characters
SHORTEST = 200  # length of the shortest texts that can be judged, in characters
_FEWEST_BLOCKS = 4  # of real text
_NUM_PARTS = 4  # of a text, for the loss by position
_NUM_RESAMPLES = 2000
# Scripts that are written without spaces.
_WITHOUT_SPACES = re.compile("(CJK|HIRAGANA|KATAKANA|THAI|LAO|KHMER|MYANMAR) ")


def split_words(text: str) -> list[str]:
    """Returns the words of a text: the longest runs of letters, marks, digits, "_" and apostrophes.

    Every character is a word in scripts that are written without spaces: Chinese, Japanese, Thai,
    Lao, Khmer and Burmese.

    >>> split_words("'Tis known--I am. 漢字")
    ["'Tis", 'known', 'I', 'am', '漢', '字']
    """
    return text.translate({ord(char): _spaced(char) for char in set(text)}).split()


@cache
def _spaced(char: str) -> str:
    """Returns a character of a word as it is, one that is a word in spaces, any other as a space."""
    category = unicodedata.category(char)
    if not (category[0] in "LMN" or category == "Pc" or char in "'\u2019"):
        return " "
    return f" {char} " if _WITHOUT_SPACES.match(unicodedata.name(char, "")) else char


def known_share(words: Sequence[str], known: Collection[str]) -> float:
    """Returns the share of the words that are known; 0 if there are no words."""
    return sum(word in known for word in words) / max(len(words), 1)


def distinct_share(words: Sequence[str], n: int, *, num_words: int) -> float:
    """Returns how many of the n-grams of words are different, as a share; 0 if there are none.

    It falls with the length of a text, so only values for the same number of words compare.

    Args:
      words: words of the text, in order.
      n: number of words in an n-gram.
      num_words: number of words that are used, from the start.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation
    Models", arXiv:1510.03055, distinct-n.
    """
    words = words[:num_words]
    ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(ngrams)) / max(len(ngrams), 1)


class Figure(NamedTuple):
    """The mean of a figure over texts, and its 95% interval.

    Attributes:
      mean: mean over the texts.
      low: lower end of the interval.
      high: upper end of the interval.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Judged:
    """The figures of some texts, and what they say.

    Attributes:
      figures: name -> figure. "known_words": share of the words that stand in the training text.
        "copied_N": share of the N-grams of characters, at every position, that stand there.
        "longest_copy": longest span of a text that stands there, in characters. "distinct_N": share
        of N-grams of words that are different, see `Judgement.num_words`. "nats_per_char":
        cross-entropy under a Kneser-Ney model of the training text. "drift": the same in the last
        quarter of a text, less that in the first.
      loss_by_quarter: cross-entropy under the Kneser-Ney model in each quarter of the texts, in
        nats/char.
      verdict: "memorised", "repeats itself", "gibberish" or "invents words", or several of them;
        "like real text".
      reasons: what each part of the verdict rests on.
    """

    figures: dict[str, Figure]
    loss_by_quarter: list[float]
    verdict: str = "real text"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Generated texts beside real text.

    Attributes:
      real: the real text. Its intervals are those of as many blocks as there are texts in a group.
      groups: name -> the texts of a group.
      num_chars: length of a block of real text, in characters.
      num_texts: number of texts in a group, in the smallest if they differ.
      num_words: number of words of each text that the figures "distinct_N" are computed from.
    """

    real: Judged
    groups: dict[str, Judged]
    num_chars: int
    num_texts: int
    num_words: int


def judge(
    groups: Mapping[str, Sequence[str]], *, training_text: str, real_text: str, seed: int = 0
) -> Judgement:
    """Judges groups of generated texts by as much real text.

    Args:
      groups: name -> texts of about the same length, at least `SHORTEST` characters.
      training_text: text that the model was trained on.
      real_text: text of the same kind that it was not trained on.
      seed: seed of the bootstrap.

    Raises:
      UserError: the generated texts are too short, or there is less real text than that.
    """
    sizes = [len(texts) for texts in groups.values()]
    lengths = [len(text) for texts in groups.values() for text in texts]
    if not lengths or not all(sizes) or min(lengths) < SHORTEST:
        raise UserError(
            f"a text to judge has {min(lengths, default=0):,} characters: give at least {SHORTEST}"
        )
    num_texts, num_chars = min(sizes), int(np.median(lengths))
    blocks = _cut(real_text, num_chars)
    if len(blocks) < max(num_texts, _FEWEST_BLOCKS):
        raise UserError(
            f"the held-out text has {len(real_text):,} characters, but comparing {num_texts} texts "
            f"of {num_chars:,} takes {max(num_texts, _FEWEST_BLOCKS) * num_chars:,}: judge fewer, "
            "or shorter ones"
        )
    num_words = max(min(len(split_words(block)) for block in blocks), max(_DISTINCT))
    texts = [*blocks, *(text for texts in groups.values() for text in texts)]
    table, parts = _measure(texts, training_text, num_words=num_words)
    bounds = np.cumsum([len(blocks), *sizes])[:-1]
    real_rows, *rows = np.split(table, bounds)
    real_parts, *group_parts = np.split(parts, bounds)
    real = Judged(_figures(real_rows, num_texts, seed=seed), real_parts.mean(axis=0).tolist())
    judged = {}
    for name, own, own_parts in zip(groups, rows, group_parts, strict=True):
        figures = _figures(own, len(own), seed=seed)
        verdict, reasons = _verdict(figures, real.figures)
        judged[name] = Judged(figures, own_parts.mean(axis=0).tolist(), verdict, reasons)
    return Judgement(real, judged, num_chars, num_texts, num_words)


_DISTINCT = (1, 2, 3)
FIGURES = (
    "known_words",
    *(f"copied_{n}" for n in LENGTHS),
    "longest_copy",
    *(f"distinct_{n}" for n in _DISTINCT),
    "nats_per_char",
    "drift",
)


def _cut(text: str, num_chars: int) -> list[str]:
    """Returns the blocks of a text, without the rest at its end."""
    return [text[i : i + num_chars] for i in range(0, len(text) - num_chars + 1, num_chars)]


def _measure(
    texts: Sequence[str], training_text: str, *, num_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([num_texts, len(FIGURES)] figures, [num_texts, 4] losses by quarter)."""
    known = set(split_words(training_text))
    vocabulary = Vocabulary.build([training_text])
    model = KneserNey.fit(vocabulary.encode(training_text), vocabulary_size=vocabulary.size)
    table, parts = [], []
    for text, matches in zip(texts, longest_matches(texts, training_text), strict=True):
        words = split_words(text)
        losses = model.losses(vocabulary.encode(text, unk="keep"))
        quarters = [part.mean() for part in np.array_split(losses, _NUM_PARTS)]
        table.append(
            (
                known_share(words, known),
                *(overlap(matches, n) for n in LENGTHS),
                matches.lengths.max(),
                *(distinct_share(words, n, num_words=num_words) for n in _DISTINCT),
                losses.mean(),
                quarters[-1] - quarters[0],
            )
        )
        parts.append(quarters)
    return np.array(table), np.array(parts)


def _figures(rows: np.ndarray, num_drawn: int, *, seed: int) -> dict[str, Figure]:
    """Returns the mean of each figure, and the interval of the mean of `num_drawn` of the rows."""
    drawn = np.random.default_rng(seed).integers(len(rows), size=(_NUM_RESAMPLES, num_drawn))
    low, high = np.quantile(rows[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    ends = zip(rows.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Figure(*values) for name, values in zip(FIGURES, ends, strict=True)}
