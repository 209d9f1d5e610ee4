"""Contamination: how much of a split also stands in the training text.

Pieces of text are compared by 64-bit hashes. Pieces that differ have the same hash with a
probability of about 1e-19 for each pair, so about 1e-6 that a single pair of 1e13 does.
"""

from collections.abc import Iterator

import numpy as np

PIECE = 50  # characters; Tiny Shakespeare's validation split shares none of this length
NOTABLE = 0.01  # share of pieces above which a loss is not one of new text
_MOST_PIECES = 100_000  # of the split, evenly spread
_MOST_TRAINING = 100_000_000  # characters of the training text that are searched, at its end
_BLOCK = 1 << 20  # characters hashed at once
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64


def shared_share(split: np.ndarray, train: np.ndarray, *, length: int = PIECE) -> float:
    """Returns the share of the pieces of a split that also stand in the training text.

    Of a split with more than 100,000 pieces, as many are taken, evenly spread. Of a training text
    with more than 100 million characters, the last 100 million are searched.

    Args:
      split: [num_chars] ids of the split.
      train: [num_chars] ids of the training text.
      length: number of characters in a piece.

    Returns:
      The share, from 0 to 1; 0 if the split is shorter than a piece.
    """
    num_pieces = len(split) - length + 1
    if num_pieces < 1:
        return 0.0
    every = -(-num_pieces // _MOST_PIECES)
    wanted = np.concatenate([h[-start % every :: every] for start, h in _blocks(split, length)])
    unique, counts = np.unique(wanted, return_counts=True)
    found = np.zeros(len(unique), bool)
    for _, hashes in _blocks(train[-_MOST_TRAINING:], length):
        places = np.minimum(np.searchsorted(unique, hashes), len(unique) - 1)
        found[places[unique[places] == hashes]] = True
    return float(counts[found].sum() / counts.sum())


def _blocks(tokens: np.ndarray, length: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (position of the first piece, hashes of the pieces) of a text, in blocks."""
    for start in range(0, len(tokens) - length + 1, _BLOCK):
        yield start, _hashes(tokens[start : start + _BLOCK + length - 1], length)


def _hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """Returns the hash of the piece that begins at each position, [num_chars - length + 1] uint64.

    hash(i) = sum_j mixed(t[i + j]) base**j modulo 2**64, as a difference of two sums from 0 on
    """
    mixed = (np.asarray(tokens, np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    powers = np.cumprod(np.full(len(tokens), _BASE, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * powers)])
    inverse = np.uint64(pow(int(_BASE), -1, 2**64))
    back = np.cumprod(np.full(len(tokens) - length + 1, inverse, np.uint64))
    return (sums[length:] - sums[:-length]) * back
