"""Token array -> `Batch(inputs, targets)`, as a pure function of the step.

Step k always gives the same batch, so the step is the position in the text, and nothing else has to
be saved or restored. Targets are the inputs shifted by one ("Hell" -> "ello").
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from charrnn_jax.errors import UserError

_MOST_SHUFFLED = 1 << 27  # chunks: more than that are permuted without an array of all of them
_FEISTEL_ROUNDS = 4

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
        self._epoch = -1  # whose order is kept
        self._order = np.empty(0, np.uint32)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Returns the order of the chunks in an epoch."""
        if epoch != self._epoch:
            self._order = np.empty(0, np.uint32)  # frees the memory before it is needed again
            self._order = np.arange(self.num_chunks, dtype=np.uint32)  # half the memory of int64
            np.random.default_rng([self.seed, epoch]).shuffle(self._order)
            self._epoch = epoch
        return self._order

    def starts(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        places = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if self.num_chunks > _MOST_SHUFFLED:
            chunks = permute(
                np.arange(places.start, places.stop), size=self.num_chunks, key=[self.seed, epoch]
            )
        else:
            chunks = self._shuffled(epoch)[places]
        return chunks.astype(np.int64) * (self.sequence_length + 1)

    def __getitem__(self, step: int) -> Batch:
        return slice_batch(self.tokens, self.starts(step), sequence_length=self.sequence_length)


def permute(indices: np.ndarray, *, size: int, key: Sequence[int]) -> np.ndarray:
    """Returns what indices become in a random permutation of 0, ..., size - 1, without making it.

    A Feistel network permutes all numbers of 2 n bits, for the smallest n with 4**n >= size. Each
    of its rounds replaces the halves of a number, (left, right), by (right, left ^ f(right)), where
    f depends on the key and the round. A result of `size` or more is permuted again.

    Args:
      indices: [k] integers from 0 to size - 1.
      size: number of indices, up to 2**62.
      key: seeds of the permutation.

    Returns:
      [k] int64.
    """
    num_bits = np.uint64(max(-(-(size - 1).bit_length() // 2), 1))
    mask = (np.uint64(1) << num_bits) - np.uint64(1)
    rounds = np.random.SeedSequence(key).generate_state(_FEISTEL_ROUNDS, np.uint64)
    result = np.array(indices, np.uint64)
    left_over = np.ones(result.shape, bool)
    while left_over.any():
        values = result[left_over]
        left, right = values >> num_bits, values & mask
        for round_key in rounds:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        result[left_over] = (left << num_bits) | right
        left_over = result >= size
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns numbers whose bits all depend on all bits of x: the finalizer of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


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
