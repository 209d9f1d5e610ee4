"""Probes: what a unit may follow in a text, as functions text -> one value for each character.

A value is true or false, or a number. Probes look at the whole text, so some know more than a model
that reads from left to right: at the first letter of an upper-case word, it can only guess.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from charrnn_jax.errors import UserError, shortened, shown

# Text of N characters -> [N], bool or numbers.
Probe = Callable[[str], np.ndarray]

# A quotation is inside one paragraph. A single quote opens after and closes before what is no
# letter, so that the apostrophe of "it's" does neither; that of "'tis" may still open one.
_QUOTES = re.compile(
    r"""  "[^"\n]*(?:\n(?!\n)[^"\n]*)*"
        | \u201c[^\u201d]{0,2000}\u201d
        | (?<!\w)'(?=[^\s'])(?:(?!\n\n).){0,300}?(?<=[^\s'])'(?!\w)
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_UPPER_CASE = re.compile(r"\b[^\W\d_]{2,}\b")
_SPEAKER = re.compile(r"^(?=[^\W\d_])[^\n:]{1,40}:(?=\n)", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_VOWELS = frozenset("aeiouyàâäáãåæèéêëìíîïòóôöõøœùúûüýÿ")


def inside_quotes(text: str) -> np.ndarray:
    """Whether a character is in a quotation, in double or single quotes; the quotes are."""
    return _inside(_QUOTES, text)


def inside_brackets(text: str) -> np.ndarray:
    """Whether a (, [ or { is open in this paragraph."""
    inside, depth = np.zeros(len(text), bool), 0
    for i, character in enumerate(text):
        if character == "\n" and text[i - 1 : i] == "\n":
            depth = 0
        depth = max(depth + _BRACKETS.get(character, 0), 0)
        inside[i] = depth > 0
    return inside


def upper_case_word(text: str) -> np.ndarray:
    """Whether a character is in a word of two or more letters, all upper-case."""
    inside = np.zeros(len(text), bool)
    for match in _UPPER_CASE.finditer(text):
        inside[match.start() : match.end()] = match[0].isupper()
    return inside


def speaker_line(text: str) -> np.ndarray:
    """Whether a character is in a line "NAME:" of a play: begins with a letter, ends with ":"."""
    return _inside(_SPEAKER, text)


def distance_since_newline(text: str) -> np.ndarray:
    """Number of characters since the last line break, 0 for the break itself."""
    positions = np.arange(len(text))
    is_break = np.array([character == "\n" for character in text], bool)
    return positions - np.maximum.accumulate(np.where(is_break, positions, -1))


def position_in_line(text: str) -> np.ndarray:
    """Share of the line that has been read, above 0 to 1; 0 for a line break."""
    position = np.zeros(len(text))
    for match in re.finditer(r"[^\n]+", text):
        length = len(match[0])
        position[match.start() : match.end()] = np.arange(1, length + 1) / length
    return position


def position_in_word(text: str) -> np.ndarray:
    """Number of letters of the word so far, 0 outside of words."""
    position = np.zeros(len(text))
    for match in _WORD.finditer(text):
        position[match.start() : match.end()] = np.arange(1, len(match[0]) + 1)
    return position


def syllable(text: str) -> np.ndarray:
    """Number of groups of vowels of the word so far, 0 outside of words.

    y is a vowel, and a silent e counts: "the" and "make" have 1 and 2.
    """
    number = np.zeros(len(text))
    for match in _WORD.finditer(text):
        vowels = np.array([letter in _VOWELS for letter in match[0].lower()])
        starts = vowels & ~np.concatenate([[False], vowels[:-1]])
        number[match.start() : match.end()] = np.cumsum(starts)
    return number


PROBES: dict[str, Probe] = {
    "inside quotes": inside_quotes,
    "inside brackets": inside_brackets,
    "upper-case word": upper_case_word,
    "speaker line": speaker_line,
    "distance since newline": distance_since_newline,
    "position in line": position_in_line,
    "position in word": position_in_word,
    "syllable": syllable,
}


def make_probe(pattern: str) -> Probe:
    """Returns the probe that is true inside of every match of a regular expression.

    Args:
      pattern: regular expression of Python; ^ and $ match at every line.

    Raises:
      UserError: the expression is not valid.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        reason = shortened(str(error))
        raise UserError(
            f"{shown(pattern)} is not a regular expression ({reason}): correct it"
        ) from error
    return partial(_inside, compiled)


def apply_probes(text: str, probes: Mapping[str, Probe]) -> dict[str, np.ndarray]:
    """Returns the values of each probe, [N], of bools or finite numbers.

    Raises:
      UserError: a probe gives anything else.
    """
    values = {name: np.asarray(probe(text)) for name, probe in probes.items()}
    for name, array in values.items():
        is_number = array.dtype.kind in "iuf" and np.isfinite(array).all()
        if array.shape != (len(text),) or not (array.dtype == bool or is_number):
            raise UserError(
                f"the probe {name!r} gave {array.dtype} of shape {array.shape} for {len(text)} "
                "characters: give a bool or a finite number for each"
            )
    return values


def _inside(pattern: re.Pattern[str], text: str) -> np.ndarray:
    inside = np.zeros(len(text), bool)
    for match in pattern.finditer(text):
        inside[match.start() : match.end()] = True
    return inside
