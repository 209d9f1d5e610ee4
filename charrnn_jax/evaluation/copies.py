"""Which parts of a text stand in the training text, and where.

Positions and lengths are in characters (Unicode code points). This module knows strings only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from charrnn_jax.data.vocabulary import code_points


class Matches(NamedTuple):
    """The longest strings of a text that stand in the training text, one for each position.

    Attributes:
      lengths: [n] length of the longest string that begins at each position, in characters.
      places: [n] a position in the training text where it stands; arbitrary if the length is 0.
    """

    lengths: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Span:
    """A stretch of a text that stands in the training text and cannot be made longer.

    Attributes:
      start: position in the text.
      length: number of characters.
      place: a position in the training text where it stands.
    """

    start: int
    length: int
    place: int


def longest_matches(texts: Sequence[str], training_text: str) -> list[Matches]:
    """Finds the longest match at every position of some texts.

    One suffix array is built of all texts. The best match of a suffix is the nearest suffix of the
    training text before or after it in their order, and its length is the smallest of the common
    prefixes between the two.

    Args:
      texts: texts to search for, each alone.
      training_text: text to search in.

    Returns:
      The matches of each text.
    """
    import pydivsufsort

    # Two symbols that differ end the training text and the texts, so that no match goes beyond.
    ended = [[code_points(training_text) + 2, [0]], *([code_points(t) + 2, [1]] for t in texts)]
    joined = np.concatenate([part for pair in ended for part in pair]).astype(np.int32)
    suffixes = pydivsufsort.divsufsort(joined)
    common = pydivsufsort.kasai(joined, suffixes)  # of each suffix and the next; the last is 0
    is_text = suffixes > len(training_text)
    ranks = np.flatnonzero(is_text)  # the first suffix is the 0, so every rank is at least 1
    after = np.minimum(ranks + 1, len(joined) - 1)
    lengths, places = np.zeros((2, len(joined)), np.int64)
    for order, neighbours, shared in (
        (slice(None), ranks - 1, common[ranks - 1]),
        (slice(None, None, -1), after, common[ranks]),
    ):
        found = _carry_over(
            shared[order].tolist(), is_text[neighbours[order]].tolist(), suffixes[neighbours[order]]
        )
        positions = suffixes[ranks[order]]
        longer = found[0] > lengths[positions]
        lengths[positions[longer]], places[positions[longer]] = found[:, longer]
    ends = len(training_text) + 1 + np.cumsum([len(text) + 1 for text in texts])
    starts = ends - [len(text) + 1 for text in texts]
    return [
        Matches(lengths[start : end - 1], places[start : end - 1])
        for start, end in zip(starts, ends, strict=True)
    ]


def _carry_over(
    shared: Iterable[int], neighbour_is_text: Iterable[bool], neighbours: np.ndarray
) -> np.ndarray:
    """Returns [2, m]: the common prefix with the last suffix of the training text, and its place.

    Args:
      shared: [m] common prefix of each suffix and its neighbour.
      neighbour_is_text: [m] whether the neighbour belongs to the texts, too.
      neighbours: [m] positions of the neighbours.
    """
    found, length, place = [], 0, 0
    for common, is_text, neighbour in zip(shared, neighbour_is_text, neighbours, strict=True):
        length, place = (min(length, common), place) if is_text else (common, neighbour)
        found.append((length, place))
    return np.array(found, np.int64).reshape(-1, 2).T


def copied_spans(matches: Matches, *, at_least: int) -> list[Span]:
    """Returns the copied spans of a text, in order. They may overlap, but none is inside another.

    Args:
      matches: matches of the text.
      at_least: length of the shortest span, at least 1, in characters.
    """
    ends = np.arange(len(matches.lengths)) + matches.lengths  # never decrease
    goes_further = np.diff(ends, prepend=0) > 0
    starts = np.flatnonzero(goes_further & (matches.lengths >= at_least))
    return [Span(int(i), int(matches.lengths[i]), int(matches.places[i])) for i in starts]


def overlap(matches: Matches, n: int) -> float:
    """Returns the share of the n-grams of a text, at every position, that are copied."""
    lengths = matches.lengths[: max(len(matches.lengths) - n + 1, 0)]
    return float(np.mean(lengths >= n)) if lengths.size else float("nan")
