"""Prompts as arrays: ids, padding, and a random key for each prompt."""

import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError


def encode_prompt(prompt: str, vocabulary: Vocabulary, *, unk: str = "error") -> np.ndarray:
    """Turns a prompt into ids.

    Args:
      prompt: text; an empty one stands for a line break, the start of a line, or for the first
        character of a vocabulary without line breaks.
      vocabulary: vocabulary of the model.
      unk: what to do with unknown characters: "error", or "skip" (drop them).

    Returns:
      [num_chars] ids, at least one.

    Raises:
      UserError: the prompt has unknown characters and `unk` is "error", or it has no known ones.
      ValueError: `unk` has another value.
    """
    if unk not in ("error", "skip"):
        raise ValueError(f"unk is {unk!r}; it must be error or skip")
    if not prompt:
        line_break = vocabulary.encode("\n", unk="skip")
        return line_break if line_break.size else np.array([UNK_ID + 1], vocabulary.dtype)
    tokens = vocabulary.encode(prompt, unk=unk)
    if tokens.size == 0:
        raise UserError(
            f"the model knows none of the characters of the prompt {prompt!r}: give another one, "
            f"such as {vocabulary.decode([UNK_ID + 1])!r}"
        )
    return tokens


def pad(encoded: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pads texts to arrays of few different sizes, so that few programs have to be compiled.

    Args:
      encoded: ids of each text, [num_chars].

    Returns:
      (ids [B, P], lengths [B]). P is a power of two, and B has at most three binary digits that are
      not 0. Rows after the texts have length 1.
    """
    unit = 1 << max(len(encoded).bit_length() - 3, 0)
    num_rows = -(-len(encoded) // unit) * unit
    lengths = np.ones(num_rows, np.int32)
    lengths[: len(encoded)] = [len(tokens) for tokens in encoded]
    padded = np.zeros((num_rows, 1 << int(lengths.max() - 1).bit_length()), np.int32)
    for row, tokens in zip(padded, encoded, strict=False):
        row[: len(tokens)] = tokens
    return padded, lengths


def row_keys(seed: int, encoded: Sequence[np.ndarray], *, num_rows: int) -> jax.Array:
    """Returns random keys that depend on the seed, the prompt, and how many equal ones came before.

    Args:
      seed: seed of the text, from 0 to 4294967295.
      encoded: ids of each prompt, [num_chars].
      num_rows: number of keys, at least one for each prompt.

    Returns:
      [num_rows] keys; those after the prompts are arbitrary.

    Raises:
      UserError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be from 0 to 4294967295")
    seen: Counter[bytes] = Counter()
    folded = np.zeros((num_rows, 2), np.uint32)
    for row, tokens in zip(folded, encoded, strict=False):
        identity = tokens.astype(np.uint32).tobytes()
        row[:] = zlib.crc32(identity), seen[identity]
        seen[identity] += 1
    return _fold_in(jax.random.key(seed), jax.device_put(folded))


@jax.jit
def _fold_in(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Folds each pair of numbers [B, 2] into a key; returns [B] keys."""
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1]))(
        numbers
    )
