"""Token array -> `Batch(inputs, targets)`, as a pure function of the step.

Step k always gives the same batch, so the step is the position in the text, and nothing else has to
be saved or restored. Targets are the inputs shifted by one ("Hell" -> "ello").
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from charrnn_jax.errors import UserError

T = TypeVar("T")
S = TypeVar("S")


class Batch(NamedTuple):
    """Token ids of B sequences.

    Attributes:
      inputs: [B, T] int32 ids.
      targets: [B, T] int32 ids; targets[b, t] is the character after inputs[b, t].
    """

    inputs: np.ndarray | jax.Array
    targets: np.ndarray | jax.Array


def slice_batch(
    tokens: np.ndarray | jax.Array, starts: np.ndarray | jax.Array, *, sequence_length: int
) -> Batch:
    """Slices a batch out of a text, on the device that holds the text.

    Args:
      tokens: [num_chars] ids of the text.
      starts: [B] positions of the first characters; each slice has sequence_length + 1 characters.
      sequence_length: T, in characters.
    """
    window = tokens[starts[:, None] + np.arange(sequence_length + 1)[None]].astype(np.int32)
    return Batch(inputs=window[:, :-1], targets=window[:, 1:])


class Batches(Protocol):
    """What the training loop needs from a kind of batching.

    Attributes:
      tokens: [num_chars] ids of the text.
      sequence_length: T, in characters.
      steps_per_epoch: number of batches in one pass over the text.
      reset_every_steps: number of batches from one reset of the carry to the next.
    """

    tokens: np.ndarray
    sequence_length: int
    steps_per_epoch: int
    reset_every_steps: int

    def starts(self, step: int) -> np.ndarray:
        """Returns the positions in the text where the sequences of a step begin, [B]."""

    def __getitem__(self, step: int) -> Batch: ...


class Chunks:
    """Chunks of sequence_length + 1 characters, shuffled anew each epoch, as in the tutorial.

    Characters left over at the end of the text, and chunks left over at the end of an epoch, are
    dropped. Every chunk starts from a zero carry.

    Args:
      tokens: [num_chars] ids of the text.
      batch_size: B, in chunks.
      sequence_length: T, in characters.
      seed: seed of the shuffles.
    """

    reset_every_steps = 1

    def __init__(self, tokens: np.ndarray, *, batch_size: int, sequence_length: int, seed: int):
        self.num_chunks = len(tokens) // (sequence_length + 1)
        self.steps_per_epoch = self.num_chunks // batch_size
        if not self.steps_per_epoch:
            raise _too_short(len(tokens), batch_size, sequence_length, sequence_length + 1)
        self.tokens = tokens
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self._order = lru_cache(maxsize=1)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        chunks = np.arange(self.num_chunks, dtype=np.uint32)  # half the memory of int64
        return np.random.default_rng([self.seed, epoch]).permutation(chunks)

    def starts(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        chunks = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return chunks.astype(np.int64) * (self.sequence_length + 1)

    def __getitem__(self, step: int) -> Batch:
        return slice_batch(self.tokens, self.starts(step), sequence_length=self.sequence_length)


class Lanes:
    """B contiguous lanes read in parallel, T characters per step; the carry is kept between steps.

    Lane b is the b-th of B equal parts of the text. At the end of an epoch every lane jumps back to
    its start, and the carry is reset to zero.

    Args:
      tokens: [num_chars] ids of the text.
      batch_size: B, in lanes.
      sequence_length: T, in characters.
    """

    def __init__(self, tokens: np.ndarray, *, batch_size: int, sequence_length: int):
        lane_length = (len(tokens) - 1) // batch_size  # the last target needs one more character
        self.steps_per_epoch = max(lane_length, 0) // sequence_length
        if not self.steps_per_epoch:
            raise _too_short(len(tokens), batch_size, sequence_length, sequence_length)
        self.reset_every_steps = self.steps_per_epoch
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.lanes = np.arange(batch_size) * lane_length  # [B], where each begins

    def starts(self, step: int) -> np.ndarray:
        return self.lanes + step % self.steps_per_epoch * self.sequence_length

    def __getitem__(self, step: int) -> Batch:
        return slice_batch(self.tokens, self.starts(step), sequence_length=self.sequence_length)


def make_batches(
    tokens: np.ndarray, *, batching: str, batch_size: int, sequence_length: int, seed: int
) -> Batches:
    """Makes the batches of a text; `batches[step]` is the batch of a step.

    Args:
      tokens: [num_chars] ids of the text.
      batching: "chunks" or "lanes".
      batch_size: B, in sequences.
      sequence_length: T, in characters.
      seed: seed of the shuffles of "chunks".

    Raises:
      UserError: the text is too short for one batch; the message says what would fit.
    """
    if batching == "chunks":
        return Chunks(tokens, batch_size=batch_size, sequence_length=sequence_length, seed=seed)
    return Lanes(tokens, batch_size=batch_size, sequence_length=sequence_length)


def _too_short(num_chars: int, batch_size: int, sequence_length: int, chunk: int) -> UserError:
    fits = f"--config.data.batch_size={max(num_chars - 1, 0) // chunk}"
    if num_chars - 1 < chunk:
        fits = f"--config.data.batch_size=1 --config.data.sequence_length={max(num_chars // 4, 1)}"
    return UserError(
        f"the training split has {num_chars} characters, too few for one batch of "
        f"{batch_size} x {sequence_length}: use more text, or {fits}"
    )


def prefetch(items: Iterable[S], put: Callable[[S], T], *, size: int = 2) -> Iterator[T]:
    """Yields `put(item)` for each item, with `put` called on up to `size` items ahead.

    `put` is a copy to the device, which returns before the copy is done.
    """
    items = iter(items)
    queue = deque(map(put, itertools.islice(items, size)))
    while queue:
        yield queue.popleft()
        queue.extend(map(put, itertools.islice(items, 1)))
