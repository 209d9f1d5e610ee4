"""Where the difference of two models comes from: kinds of characters, positions, passages.

Every character belongs to one group of each kind of group, so the contributions of the groups add
up to the mean difference. This module knows characters and losses, but neither models nor files.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from charrnn_jax.evaluation.comparison import MIN_BLOCKS, standard_error

NUM_PASSAGES, PASSAGE_CHARS, CONTEXT_CHARS = 20, 30, 20
# First letters or whole names of Unicode categories -> kind of character; the first that fits.
_KINDS = {
    "Ll": "lower-case letter",
    "Lu": "upper-case letter",
    "Lt": "upper-case letter",
    "L": "other letter",  # of a script without cases
    "M": "mark",
    "N": "digit",
    "Z": "space",
    "P": "punctuation",
    "S": "symbol",
    "C": "other",
}
_WORD = re.compile(r"[^\W_]+")
_LINE = re.compile(r"[^\n]*\n?")
# The groups of positions begin at these, counted from 1.
_IN_WORD = (1, 2, 3, 5)
_IN_LINE = (1, 2, 11, 21, 41)


@dataclass(frozen=True)
class Group:
    """What a group of characters contributes to the difference of two models, A minus B.

    Attributes:
      kind: what the groups differ in, such as "position in the word".
      name: which group it is.
      num_chars: number of characters in it.
      losses: mean loss of A and of B in the group, nats/char.
      standard_error: standard error of the difference of the two, nats/char; None for fewer than
        32 characters.
      contribution: difference summed over the group, divided by the length of the whole text; over
        all groups of a kind these add up to the mean difference.
      share: contribution / mean difference; None if the mean difference is 0.
    """

    kind: str
    name: str
    num_chars: int
    losses: tuple[float, float]
    standard_error: float | None
    contribution: float
    share: float | None


@dataclass(frozen=True)
class Passage:
    """A passage on which two models differ much.

    Attributes:
      start: position of its first character in the text, from 0.
      end: position after its last character.
      nats: difference A minus B, summed over the passage.
    """

    start: int
    end: int
    nats: float


def break_down(
    losses: np.ndarray, others: np.ndarray, characters: str, *, window: int = 0
) -> list[Group]:
    """Returns the groups of characters, with what each contributes to the difference.

    Args:
      losses: [n] losses of model A in nats.
      others: [n] losses of model B for the same characters.
      characters: the n characters; a character that is several bytes is repeated for each byte.
      window: number of characters in a window that starts from a zero carry; 0: one pass.

    Returns:
      The groups that have characters, by kind: the kind of character, its position in the word (a
      run of letters and digits), in the line and, if there are windows, in the window.
    """
    groups = {
        "kind of character": _kinds(characters),
        "position in the word": _cut(_positions(_WORD, characters), _IN_WORD),
        "position in the line": _cut(_positions(_LINE, characters), _IN_LINE),
    }
    if window:
        in_window = 1 + np.arange(len(characters)) % window
        powers = [1 << k for k in range(window.bit_length())]
        groups["position in the window"] = _cut(in_window, [1, *(1 + power for power in powers)])
    return [
        group
        for kind, (members, names) in groups.items()
        for group in _groups(losses, others, members, kind=kind, names=names)
    ]


def _kinds(characters: str) -> tuple[np.ndarray, list[str]]:
    """Returns the kind of each character, as indices [n] into a list of names."""
    names = [*dict.fromkeys(_KINDS.values()), "newline"]
    points = np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), np.uint32)
    unique, inverse = np.unique(points, return_inverse=True)
    return np.array([names.index(_kind(chr(point))) for point in unique])[inverse], names


def _kind(character: str) -> str:
    if character in "\n\t":
        return "newline" if character == "\n" else "space"
    category = unicodedata.category(character)
    return _KINDS.get(category) or _KINDS[category[0]]


def _positions(pattern: re.Pattern[str], characters: str) -> np.ndarray:
    """Returns the position of each character in its match of a pattern, from 1; 0 outside."""
    positions = np.zeros(len(characters), np.int64)
    for match in pattern.finditer(characters):
        positions[match.start() : match.end()] = np.arange(1, 1 + match.end() - match.start())
    return positions


def _cut(positions: np.ndarray, starts: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Returns the group of each position, as indices [n] into a list of names."""
    names = ["outside"]  # of any word: position 0
    for first, after in zip(starts, [*starts[1:], None], strict=True):
        if after is None:
            names.append(f"{first} on")
        else:
            names.append(f"{first}" if after == first + 1 else f"{first} to {after - 1}")
    return np.searchsorted(np.array(starts), positions, side="right"), names


def _groups(
    losses: np.ndarray, others: np.ndarray, members: np.ndarray, *, kind: str, names: Sequence[str]
) -> list[Group]:
    differences = np.subtract(losses, others, dtype=np.float64)
    n, total = len(differences), float(differences.sum())
    result = []
    for index in np.unique(members).tolist():
        is_member = members == index
        count = int(is_member.sum())
        means = (float(each[is_member].mean(dtype=np.float64)) for each in (losses, others))
        change = float(differences[is_member].sum())
        # The error of a ratio: what each character adds to it, to first order.
        errors = np.where(is_member, (differences - change / count) * (n / count), 0.0)
        result.append(
            Group(
                kind=kind,
                name=names[index],
                num_chars=count,
                losses=(next(means), next(means)),
                standard_error=None if count < 2 * MIN_BLOCKS else standard_error(errors),
                contribution=change / n,
                share=change / total if total else None,
            )
        )
    return result


def most_different(
    losses: np.ndarray, others: np.ndarray, *, num: int = NUM_PASSAGES, length: int = PASSAGE_CHARS
) -> list[Passage]:
    """Returns the passages that differ most, without overlaps, the largest difference first.

    Args:
      losses: [n] losses of model A in nats.
      others: [n] losses of model B for the same characters.
      num: number of passages; fewer are returned if the text is short or the losses are equal.
      length: number of characters in a passage.
    """
    differences = np.subtract(losses, others, dtype=np.float64)
    length = min(length, len(differences))
    totals = np.concatenate([[0.0], np.cumsum(differences)])
    nats = totals[length:] - totals[:-length]  # of the passage that starts at each position
    left = np.abs(nats)
    passages: list[Passage] = []
    while len(passages) < num and (largest := left.max()) > 0:
        start = int(np.argmax(left == largest))
        passages.append(Passage(start, start + length, float(nats[start])))
        left[max(start - length + 1, 0) : start + length] = 0
    return passages
