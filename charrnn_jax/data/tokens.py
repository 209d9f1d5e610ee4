"""`Corpus` + `Vocabulary` -> token array, and its splits.

The tokens of a small text are kept in memory. Those of a large text are in a file in the cache
folder that is mapped into memory, so they are never loaded as a whole. The next run uses this file
again, after comparing it with the checksum at its end.
"""

import contextlib
import hashlib
import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charrnn_jax.data.corpora import Corpus, cache_folder
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError, file_error
from charrnn_jax.files import delete_oldest, remove_remains, replacing

IN_MEMORY_BYTES = 1 << 26  # a text with larger files is mapped from disk
CACHE_BYTES = 1 << 34  # of all token files; above it, those not used for longest are deleted
_DIGEST_BYTES = 32  # a SHA-256, at the end of a token file
_BLOCK_BYTES = 1 << 22


def tokenize(corpus: Corpus, vocabulary: Vocabulary) -> np.ndarray:
    """Encodes a whole corpus.

    Returns:
      [num_chars] ids of type `vocabulary.dtype`; a read-only memory map if the text is larger than
      `IN_MEMORY_BYTES`.

    Raises:
      UserError: the text has characters outside the vocabulary, or the cache cannot be written.
    """
    if sum(path.stat().st_size for path in corpus.paths) <= IN_MEMORY_BYTES:
        blocks = [vocabulary.encode(block) for block in corpus.blocks(vocabulary.kind)]
        return np.concatenate(blocks) if blocks else np.empty(0, vocabulary.dtype)
    file = _token_file(corpus, vocabulary)
    if file.is_file() and not is_intact(file):
        warnings.warn(f"the tokens in {file} are damaged, and are made again", stacklevel=2)
        file.unlink(missing_ok=True)  # by another process that uses the same text
    if not file.is_file():
        _write_tokens(corpus, vocabulary, file)
        delete_oldest(token_files(), keep=file, most_bytes=CACHE_BYTES)
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(file)  # marks it as used
    return _map(file, vocabulary.dtype)


def token_folder() -> Path:
    """Returns the folder of the token files."""
    return cache_folder() / "tokens"


def token_files() -> list[Path]:
    """Returns the token files of all texts; those that were used last come last."""
    times = {}
    for file in token_folder().glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # deleted by another process
            times[file] = file.stat().st_mtime
    return sorted(times, key=lambda file: times[file])


def is_intact(file: Path) -> bool:
    """Returns whether a token file is as it was written.

    Raises:
      UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    left = file.stat().st_size - _DIGEST_BYTES
    try:
        with open(file, "rb") as opened:
            while left > 0 and (block := opened.read(min(_BLOCK_BYTES, left))):
                digest.update(block)
                left -= len(block)
            return left == 0 and opened.read() == digest.digest()
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}): delete it") from error


def _map(file: Path, dtype: np.dtype) -> np.ndarray:
    num_bytes = file.stat().st_size - _DIGEST_BYTES
    if not num_bytes:
        return np.empty(0, dtype)
    with open(file, "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):  # not on every system
        # Shuffled chunks are far apart: reading ahead would fill the memory with the whole file.
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype, count=num_bytes // dtype.itemsize)


def _token_file(corpus: Corpus, vocabulary: Vocabulary) -> Path:
    identity = f"{corpus.sha256} {corpus.max_chars} {vocabulary.to_json()}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return token_folder() / f"{name}.{vocabulary.dtype.name}.tokens"


def _write_tokens(corpus: Corpus, vocabulary: Vocabulary, file: Path) -> None:
    digest = hashlib.sha256()
    try:
        remove_remains(file.parent)
        with replacing(file) as partial, open(partial, "wb") as out:
            for block in corpus.blocks(vocabulary.kind):
                content = vocabulary.encode(block).tobytes()
                digest.update(content)
                out.write(content)
            out.write(digest.digest())
    except OSError as error:
        remedy = "make room there, or set XDG_CACHE_HOME to a folder with enough room"
        raise file_error(error, path=file.parent, doing="write tokens to", remedy=remedy) from error


@dataclass(frozen=True)
class Splits:
    """The contiguous parts of one token array: first training, then validation, then test.

    Attributes:
      tokens: [num_chars] ids of the whole text.
      ends: position, in characters, where each of "train", "validation" and "test" ends.
    """

    tokens: np.ndarray
    ends: dict[str, int]

    @classmethod
    def make(
        cls, tokens: np.ndarray, *, validation_fraction: float, test_fraction: float
    ) -> "Splits":
        """Splits a text of n characters.

        Args:
          tokens: [n] ids of the text.
          validation_fraction: fraction of the text for validation, before the test split.
          test_fraction: fraction of the text for the test split, at its end.

        Returns:
          The splits. Training has the first int(n * (1 - validation_fraction - test_fraction))
          characters.
        """
        n = len(tokens)
        train = int(n * (1 - validation_fraction - test_fraction))
        validation = n if not test_fraction else int(n * (1 - test_fraction))
        return cls(tokens, {"train": train, "validation": validation, "test": n})

    def __getitem__(self, split: str) -> np.ndarray:
        """Returns the ids of one split, [num_chars]."""
        return self.tokens[self._start(split) : self.ends[split]]

    def with_context(self, split: str) -> np.ndarray:
        """Returns a split and the character before it, so that every character is predicted.

        The first character of a text has none before it: a split that begins there is returned
        unchanged, and its first character is only context.

        Returns:
          [1 + num_chars] ids, or [num_chars] at the beginning of the text.
        """
        return self.tokens[max(self._start(split) - 1, 0) : self.ends[split]]

    def _start(self, split: str) -> int:
        names = list(self.ends)
        if split not in names:
            raise UserError(f"there is no split {split!r}; the splits are {', '.join(names)}")
        position = names.index(split)
        return self.ends[names[position - 1]] if position else 0
