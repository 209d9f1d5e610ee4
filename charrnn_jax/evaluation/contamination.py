"""`shared_ngrams`: how much of a held-out text stands in the training text, at a bounded cost.

Knows token arrays, but not where they come from.
"""

from collections.abc import Iterator

import numpy as np

LENGTH = 50  # of the n-grams: real texts share none by chance
ALARMING = 0.01  # share of n-grams above which a loss says little about new text
_MOST = 10_000  # n-grams of the held-out text that are looked up
_BLOCK = 1 << 22  # n-grams of the training text that are hashed at once
_LOW = np.uint64((1 << 20) - 1)  # bits of a hash that decide whether it is looked up


def shared_ngrams(tokens: np.ndarray, train: np.ndarray, *, n: int = LENGTH) -> float:
    """Returns the share of the n-grams of a text that stand in the training text.

    If the text has more than 10,000 n-grams, as many are taken, evenly spaced. Equal hashes of 64
    bits count as equal n-grams. The probability that any two different ones are taken for equal is
    about 10,000 * len(train) / 2**64: 5e-7 for a thousand million characters.

    Args:
      tokens: [num_chars] ids of the held-out text.
      train: [num_chars] ids of the training text, which is read once, in blocks.
      n: length of the n-grams, in characters.

    Returns:
      The share, from 0 to 1; NaN if the held-out text is shorter than n.
    """
    num_ngrams = len(tokens) - n + 1
    if num_ngrams < 1:
        return float("nan")
    starts = np.linspace(0, num_ngrams - 1, min(num_ngrams, _MOST)).astype(np.int64)
    sampled = tokens[starts[:, None] + np.arange(n)]  # [m, n]
    wanted, counts = np.unique(_hashes(sampled, n), return_counts=True)
    found = np.zeros(len(wanted), bool)
    is_wanted = np.zeros(int(_LOW) + 1, bool)  # most hashes are ruled out by their last bits
    is_wanted[wanted & _LOW] = True
    for hashes in _hashes_in_blocks(train, n):
        found |= np.isin(wanted, hashes[is_wanted[hashes & _LOW]])
    return float(counts[found].sum() / counts.sum())


def _hashes_in_blocks(tokens: np.ndarray, n: int) -> Iterator[np.ndarray]:
    for start in range(0, len(tokens) - n + 1, _BLOCK):
        yield _hashes(tokens[start : start + _BLOCK + n - 1], n)


def _hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """Returns a 64-bit hash of each n-gram, [..., num_chars - n + 1].

    The hash of a longer gram is made of those of two shorter ones that cover it, so that log2(n)
    passes over the text are enough.
    """
    hashes, length = _mix(tokens.astype(np.uint64) + np.uint64(1)), 1
    while length < n:
        step = min(length, n - length)
        left, right = hashes[..., :-step], hashes[..., step:]
        hashes, length = _mix(left * np.uint64(0x9E3779B97F4A7C15) + right), length + step
    return hashes


def _mix(values: np.ndarray) -> np.ndarray:
    """Returns 64-bit values in which every bit depends on all bits of the given ones.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", SplitMix64.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
