"""`judge`: how good generated text is, measured against the training text and real held-out text.

Every figure is computed for each text, and averaged over texts. Real text is cut into blocks that
are as long as the generated texts. Intervals are bootstrapped over texts, and over blocks. Knows
strings only, not where they come from.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.baselines import MOST_COUNTED
from charrnn_jax.evaluation.copies import Matches, Span, longest_matches, overlap
from charrnn_jax.evaluation.ngram import KneserNey
from charrnn_jax.tables import table

LENGTHS = (8, 12, 16, 20, 30)  # of n-grams of characters
_DISTINCT = (1, 2, 3)  # lengths of n-grams of words


class Display(NamedTuple):
    """How a figure is shown: its label, what it is multiplied by, and its decimal digits."""

    label: str
    factor: float = 1
    digits: int = 2


FIGURES = {
    "known_words": Display("known words, %", 100, 1),
    **{f"copied_{n}": Display(f"copied {n}-grams, %", 100, 1) for n in LENGTHS},
    "longest_copy": Display("longest copy, chars", digits=0),
    **{f"distinct_{n}": Display(f"distinct-{n}, %", 100, 1) for n in _DISTINCT},
    "nats_per_char": Display("n-gram nats/char"),
    "drift": Display("its drift"),
}
SHORTEST = 200  # length of the shortest texts that can be judged, in characters
_FEWEST_BLOCKS = 4  # of real text
_NUM_QUARTERS = 4
STRETCH = 250  # characters in a part of a text, where texts are followed from start to end
_NUM_RESAMPLES = 2000
_FAR_LOSS = 1.25  # times the upper end for real text is gibberish
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
    """Returns a character of a word, in spaces if it is a word by itself; any other as a space."""
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


@dataclass(frozen=True)
class Figure:
    """The mean of a figure over texts, and its 95% interval.

    Attributes:
      mean: mean over the texts.
      low: lower end of the interval.
      high: upper end of the interval.
    """

    mean: float
    low: float
    high: float

    def describe(self, display: Display = FIGURES["drift"], *, real: "Figure") -> str:
        """Returns the mean with half of its interval, and a sign if real text is below or above.

        Args:
          display: how the figure is shown.
          real: the figure of real text; "<" and ">" mean below and above its interval.
        """
        sign = " <" if self.mean < real.low else " >" if self.mean > real.high else ""
        half = (self.high - self.low) / 2 * display.factor
        digits = display.digits
        return f"{self.mean * display.factor:6.{digits}f} +-{half:4.{digits}f}{sign}"


@dataclass(frozen=True)
class Judged:
    """The figures of some texts, and what they say.

    Attributes:
      figures: name -> figure. "known_words": share of the words that stand in the training text.
        "copied_N": share of the N-grams of characters, at every position, that stand there.
        "longest_copy": longest span of a text that stands there, in characters. "distinct_N": share
        of the N-grams of words that are different, see `Judgement.num_words`. "nats_per_char":
        cross-entropy under a Kneser-Ney model of the training text. "drift": the same in the last
        quarter of a text, less that in the first.
      loss_by_quarter: the cross-entropy in each quarter of the texts, in nats/char.
      loss_by_distance: the cross-entropy in the first `STRETCH` characters of the texts, in the
        next, and so on, as far as all texts go, in nats/char. Where generated text drifts away from
        real text, it rises, or falls if the text becomes a loop; that of real text stays level.
      longest: the longest copied span of all texts.
      longest_text: number of the text that has it.
      verdict: "memorised", "repeats itself", "gibberish" or "invents words", or several of them
        with commas; "like real text". For the real text itself: "".
      reasons: what each part of the verdict rests on.
    """

    figures: dict[str, Figure]
    loss_by_quarter: tuple[float, ...]
    loss_by_distance: tuple[Figure, ...]
    longest: Span
    longest_text: int
    verdict: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Generated texts beside real text.

    Attributes:
      real: the real text. Its intervals are those of the mean of `num_texts` blocks.
      groups: name -> the texts of a group.
      num_chars: length of a block of real text, in characters.
      num_blocks: number of blocks of real text.
      num_texts: number of texts in a group; in the smallest, if they differ.
      num_words: number of words of each text that "distinct_N" is computed from.
    """

    real: Judged
    groups: dict[str, Judged]
    num_chars: int
    num_blocks: int
    num_texts: int
    num_words: int

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the judgement."""
        texts = {f"real, {self.num_blocks} blocks": self.real, **self.groups}
        rows = [
            (name, *(_shown(each.figures[name]) for each in texts.values())) for name in FIGURES
        ]
        verdicts = ("verdict", *(each.verdict for each in texts.values()))
        return table([*rows, verdicts], header=(f"{self.num_chars:,} characters", *texts))


def _shown(figure: Figure) -> str:
    return f"{figure.mean:.3f} ({figure.low:.3f} to {figure.high:.3f})"


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
    texts = [text for own in groups.values() for text in own]
    num_chars = int(np.median([len(text) for text in texts])) if texts else 0
    if not sizes or not min(sizes) or min(map(len, texts)) < SHORTEST:
        shortest = min(map(len, texts), default=0)
        raise UserError(
            f"a text to judge has {shortest:,} characters: give texts of at least {SHORTEST}"
        )
    blocks = real_blocks(real_text, num_chars=num_chars, num_texts=min(sizes))
    num_words = max(min(len(split_words(block)) for block in blocks), *_DISTINCT)
    num_stretches = min(map(len, texts)) // STRETCH
    measured = _measure(
        [*blocks, *texts], training_text, num_words=num_words, num_stretches=num_stretches
    )
    real = _summary(measured[: len(blocks)], num_drawn=min(sizes), seed=seed)
    judged, start = {}, len(blocks)
    for name, size in zip(groups, sizes, strict=True):
        own = _summary(measured[start : start + size], num_drawn=size, seed=seed)
        found = _findings(own.figures, real.figures)
        verdict = ", ".join(dict.fromkeys(name for name, _ in found)) or "like real text"
        reasons = tuple(reason for _, reason in found)
        judged[name] = replace(own, verdict=verdict, reasons=reasons)
        start += size
    return Judgement(real, judged, num_chars, len(blocks), min(sizes), num_words)


def cut(text: str, num_chars: int) -> list[str]:
    """Returns the blocks of a text, `num_chars` characters each, without the rest at its end."""
    return [text[i : i + num_chars] for i in range(0, len(text) - num_chars + 1, num_chars)]


def real_blocks(real_text: str, *, num_chars: int, num_texts: int) -> list[str]:
    """Returns the blocks of a real text, at least as many as it is compared with.

    Args:
      real_text: the text.
      num_chars: length of a block, in characters.
      num_texts: number of texts that it is compared with.

    Raises:
      UserError: the text is too short.
    """
    blocks, num_needed = cut(real_text, num_chars), max(num_texts, _FEWEST_BLOCKS)
    if len(blocks) < num_needed:
        raise UserError(
            f"the held-out text has {len(real_text):,} characters, but {num_needed} times "
            f"{num_chars:,} are needed to compare with: judge fewer or shorter texts"
        )
    return blocks


class _Measured(NamedTuple):
    """What is known of one text: its figures, in the order of `FIGURES`, and what is no figure."""

    figures: tuple[float, ...]
    loss_by_quarter: tuple[float, ...]
    loss_by_distance: tuple[float, ...]
    longest: Span


def _measure(
    texts: Sequence[str], training_text: str, *, num_words: int, num_stretches: int
) -> list[_Measured]:
    known = set(split_words(training_text))
    vocabulary = Vocabulary.build([training_text])
    counted = vocabulary.encode(training_text[-MOST_COUNTED:])
    model = KneserNey.fit(counted, vocabulary_size=vocabulary.size)
    measured = []
    for text, matches in zip(texts, longest_matches(texts, training_text), strict=True):
        words, longest = split_words(text), _longest(matches)
        losses = model.losses(vocabulary.encode(text, unk="keep"))
        quarters = tuple(float(part.mean()) for part in np.array_split(losses, _NUM_QUARTERS))
        figures = (
            known_share(words, known),
            *(overlap(matches, n) for n in LENGTHS),
            longest.length,
            *(distinct_share(words, n, num_words=num_words) for n in _DISTINCT),
            float(losses.mean()),
            quarters[-1] - quarters[0],
        )
        ends = [STRETCH * k - 1 for k in range(1, num_stretches + 1)]  # the first has no loss
        by_distance = tuple(float(part.mean()) for part in np.split(losses, ends)[:-1])
        measured.append(_Measured(figures, quarters, by_distance, longest))
    return measured


def _longest(matches: Matches) -> Span:
    start = int(matches.lengths.argmax())
    return Span(start, int(matches.lengths[start]), int(matches.places[start]))


def _summary(measured: Sequence[_Measured], *, num_drawn: int, seed: int) -> Judged:
    """Averages over texts; the intervals are those of the mean of `num_drawn` texts."""
    rows = np.array([one.figures + one.loss_by_distance for one in measured])
    drawn = np.random.default_rng(seed).integers(len(rows), size=(_NUM_RESAMPLES, num_drawn))
    low, high = np.quantile(rows[drawn].mean(axis=1), [0.025, 0.975], axis=0).tolist()
    figures = [Figure(*ends) for ends in zip(rows.mean(axis=0).tolist(), low, high, strict=True)]
    quarters = np.mean([one.loss_by_quarter for one in measured], axis=0).tolist()
    number = max(range(len(measured)), key=lambda i: measured[i].longest.length)
    return Judged(
        dict(zip(FIGURES, figures, strict=False)),
        loss_by_quarter=tuple(quarters),
        loss_by_distance=tuple(figures[len(FIGURES) :]),
        longest=measured[number].longest,
        longest_text=number,
    )


def far_above(share: float) -> float:
    """Returns the limit above which a share is far above that of real text.

    Twice the share and one point (0.01) more, or half way to 1 if that is less.
    """
    return min(2 * share + 0.01, (1 + share) / 2)


def _findings(own: Mapping[str, Figure], real: Mapping[str, Figure]) -> list[tuple[str, str]]:
    """Returns (part of the verdict, its reason) for each figure that is out of bounds.

    The bounds are those of `far_above` from the end of the interval of the real text.
    """
    found = []
    copied, allowed = own["copied_30"].mean, far_above(real["copied_30"].high)
    if copied > allowed:
        found.append(("memorised", f"{copied:.1%} of 30-grams copied, limit {allowed:.1%}"))
    for n in (2, 3):
        distinct = own[f"distinct_{n}"].mean
        allowed = 1 - far_above(1 - real[f"distinct_{n}"].low)
        if distinct < allowed:
            found.append(("repeats itself", f"distinct-{n} {distinct:.3f}, limit {allowed:.3f}"))
    words, usual = own["known_words"].mean, real["known_words"].low
    allowed = 1 - far_above(1 - usual)
    if words < allowed:
        found.append(("gibberish", f"{words:.1%} known words, limit {allowed:.1%}"))
    loss, allowed = own["nats_per_char"].mean, _FAR_LOSS * real["nats_per_char"].high
    if loss > allowed:
        found.append(("gibberish", f"{loss:.2f} nats/char under n-grams, limit {allowed:.2f}"))
    if words < usual and "gibberish" not in dict(found):
        found.append(
            ("invents words", f"{words:.1%} known words, in real text at least {usual:.1%}")
        )
    return found
