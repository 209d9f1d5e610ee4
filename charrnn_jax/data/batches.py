"""Token array -> `Batch`, as a pure function of the step.

Step k always gives the same batch, so the step is the position in the text, and nothing else has to
be saved or restored. Targets are the inputs shifted by one ("Hell" -> "ello").
"""

import itertools
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Required, TypedDict, TypeVar, Unpack

import jax
import numpy as np

from charrnn_jax.errors import UserError

_MOST_SHUFFLED = 1 << 27  # chunks: more than that are permuted without an array of all of them
_FEISTEL_ROUNDS = 4
# Last entry of the seeds [seed, epoch or step, ...] of what is drawn here besides the shuffles.
_OF_OFFSETS, _OF_RESETS = 1, 2

T = TypeVar("T")
S = TypeVar("S")


class Batch(NamedTuple):
    """Token ids of B sequences.

    To change a batch, use `batch._replace(inputs=...)`, which keeps the rest of it.

    Attributes:
      inputs: [B, T] int32 ids.
      targets: [B, T] int32 ids; targets[b, t] is the character after inputs[b, t].
      resets: [B] bool, whether the carry of each sequence starts from zero; None: all do.
      counted: [B, T] bool, which losses count; None: all do.
    """

    inputs: np.ndarray | jax.Array
    targets: np.ndarray | jax.Array
    resets: np.ndarray | jax.Array | None = None
    counted: jax.Array | None = None


def slice_batch(
    tokens: np.ndarray | jax.Array,
    starts: np.ndarray | jax.Array,
    *,
    sequence_length: int,
    resets: np.ndarray | jax.Array | None = None,
) -> Batch:
    """Slices a batch out of a text, on the device that holds the text.

    Args:
      tokens: [num_chars] ids of the text.
      starts: [B] positions of the first characters; each slice has sequence_length + 1 characters.
      sequence_length: T, in characters.
      resets: `Batch.resets`.
    """
    window = tokens[starts[:, None] + np.arange(sequence_length + 1)[None]].astype(np.int32)
    return Batch(inputs=window[:, :-1], targets=window[:, 1:], resets=resets)


class Stage(NamedTuple):
    """Steps that have sequences of the same length.

    Attributes:
      first_step: number of steps done before the first of them.
      length: length of their sequences, in characters.
    """

    first_step: int
    length: int


def make_stages(
    sequence_length: int, *, initial_length: int = 1, warmup_steps: int = 0
) -> tuple[Stage, ...]:
    """Returns the stages of training in which sequences grow to their full length.

    The length follows a line from `initial_length` to `sequence_length`, rounded down to
    `initial_length` times a power of two, so that few programs are compiled. It is
    `sequence_length` from step `warmup_steps` on.

    >>> [(stage.first_step, stage.length) for stage in make_stages(
    ...     100, initial_length=16, warmup_steps=1000)]
    [(0, 16), (191, 32), (572, 64), (1000, 100)]

    Args:
      sequence_length: T, in characters.
      initial_length: length of the first sequences, in characters, at most T.
      warmup_steps: number of training steps before the first full sequences; 0: all are full.

    Source: Li et al. 2021, "Curriculum Learning: A Regularization Method for Efficient and Stable
    Billion-Scale GPT Model Pre-Training" (arXiv:2108.06084), linear pacing.
    """
    stages, length = [], initial_length
    while warmup_steps and length < sequence_length:
        share = warmup_steps * (length - initial_length), sequence_length - initial_length
        stages.append(Stage(-(-share[0] // share[1]), length))
        length *= 2
    return (*stages, Stage(warmup_steps if stages else 0, sequence_length))


def chars_per_row(stages: Sequence[Stage], step: int) -> int:
    """Returns how many characters of each of the B sequences were predicted in `step` steps."""
    ends = [*(stage.first_step for stage in stages[1:]), step]
    return sum(
        stage.length * max(min(end, step) - stage.first_step, 0)
        for stage, end in zip(stages, ends, strict=True)
    )


class Settings(TypedDict, total=False):
    """Keyword arguments of `Batches`, for type checkers."""

    batch_size: Required[int]
    sequence_length: Required[int]
    seed: int
    offset: str
    stages: Sequence[Stage] | None


class Batches(ABC):
    """The batches of a text: what the training loop needs from a kind of batching.

    An epoch is a constant number of steps, those in which full sequences read the text once.

    Args:
      tokens: [num_chars] ids of the text.
      batch_size: B, in sequences.
      sequence_length: T, in characters.
      seed: seed of everything that is drawn.
      offset: "fixed", or "random": each pass over the text begins at another of its first
        characters.
      stages: lengths of the sequences, from `make_stages`; None: all are full.

    Attributes:
      tokens: [num_chars] ids of the text.
      batch_size: B, in sequences.
      sequence_length: T, in characters.
      steps_per_epoch: number of steps in an epoch.
    """

    steps_per_epoch: int

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
        offset: str = "fixed",
        stages: Sequence[Stage] | None = None,
    ):
        self.tokens = tokens
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self._seed = seed
        self._is_random = offset == "random"
        self._stages = make_stages(sequence_length) if stages is None else stages
        self._first_steps = [stage.first_step for stage in self._stages]

    @abstractmethod
    def starts(self, step: int) -> np.ndarray:
        """Returns the positions in the text where the sequences of a step begin, [B]."""

    @abstractmethod
    def resets(self, step: int) -> np.ndarray:
        """Returns which sequences of a step start from the zero carry, [B] bool."""

    def length(self, step: int) -> int:
        """Returns the length of the sequences of a step, in characters."""
        return self._stages[self._stage_of(step)].length

    def __getitem__(self, step: int) -> Batch:
        return slice_batch(
            self.tokens,
            self.starts(step),
            sequence_length=self.length(step),
            resets=self.resets(step),
        )

    def _stage_of(self, step: int) -> int:
        return bisect_right(self._first_steps, step) - 1

    def _offset(self, number: int, *, below: int) -> int:
        """Returns how many characters at the start of the text a pass over it leaves out."""
        return _draw_offset(self._seed, number, below) if self._is_random else 0


@lru_cache(maxsize=16)  # of an epoch, which asks for it in every step
def _draw_offset(seed: int, number: int, below: int) -> int:
    return int(np.random.default_rng([seed, number, _OF_OFFSETS]).integers(below))


class Chunks(Batches):
    """Chunks of sequence_length + 1 characters, shuffled anew each epoch, as in the tutorial.

    Characters left over at the end of the text, and chunks left over at the end of an epoch, are
    dropped. Every chunk starts from a zero carry. With a random offset, the text is cut up to T
    characters further on, at other places in each epoch. A sequence shorter than T + 1 is the
    beginning of its chunk.

    Args:
      tokens: [num_chars] ids of the text.
      settings: see `Batches`.
    """

    def __init__(self, tokens: np.ndarray, **settings: Unpack[Settings]):
        super().__init__(tokens, **settings)
        size = self.sequence_length + 1
        room = size - 1 if self._is_random else 0  # the largest offset
        self.num_chunks = max(len(tokens) - room, 0) // size
        self.steps_per_epoch = self.num_chunks // self.batch_size
        if not self.steps_per_epoch:
            raise _too_short(len(tokens), self.batch_size, self.sequence_length, size, room=room)
        self._epoch = -1  # whose order is kept
        self._order = np.empty(0, np.uint32)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Returns the order of the chunks in an epoch."""
        if epoch != self._epoch:
            self._order = np.empty(0, np.uint32)  # frees the memory before it is needed again
            self._order = np.arange(self.num_chunks, dtype=np.uint32)  # half the memory of int64
            np.random.default_rng([self._seed, epoch]).shuffle(self._order)
            self._epoch = epoch
        return self._order

    def starts(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        places = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if self.num_chunks > _MOST_SHUFFLED:
            chunks = permute(
                np.arange(places.start, places.stop), size=self.num_chunks, key=[self._seed, epoch]
            )
        else:
            chunks = self._shuffled(epoch)[places]
        size = self.sequence_length + 1
        return chunks.astype(np.int64) * size + self._offset(epoch, below=size)

    def resets(self, step: int) -> np.ndarray:
        return np.ones(self.batch_size, bool)


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


class Lanes(Batches):
    """B contiguous lanes read in parallel, T characters per step; the carry is kept between steps.

    Lane b is the b-th of B equal parts of the text. After a pass, when no whole sequence is left,
    every lane jumps back to its start, and the carry is reset to zero. With a random offset, the
    lanes of each pass lie up to T - 1 characters further on, so the gradient is truncated at other
    characters; the end of the text that does not fit is dropped. In AWD-LSTM, random lengths do
    that (Merity et al. 2017, arXiv:1708.02182, section 5); with an offset all batches have the same
    shape.

    Shorter sequences are contiguous too: each begins where the one before it ends.

    Args:
      tokens: [num_chars] ids of the text.
      carry_reset_rate: probability that a lane starts a step from the zero carry.
      settings: see `Batches`.
    """

    def __init__(
        self, tokens: np.ndarray, *, carry_reset_rate: float = 0.0, **settings: Unpack[Settings]
    ):
        super().__init__(tokens, **settings)
        length = self.sequence_length
        room = length - 1 if self._is_random else 0  # the largest offset
        # The last target needs one more character.
        self._lane_length = max(len(tokens) - 1 - room, 0) // self.batch_size
        self.steps_per_epoch = self._lane_length // length
        if not self.steps_per_epoch:
            raise _too_short(len(tokens), self.batch_size, length, length, room=room)
        self._carry_reset_rate = carry_reset_rate
        self.lanes = np.arange(self.batch_size) * self._lane_length  # [B], where each begins
        self._begins = [(0, 0)]  # of each stage: (number of the pass, position in the lane)
        for stage, (_, next_step) in enumerate(pairwise(self._first_steps)):
            self._begins.append(self._place_in(stage, next_step))

    def _place_in(self, stage: int, step: int) -> tuple[int, int]:
        """Returns (number of the pass over the text, position in the lane) of a step of a stage."""
        first_step, length = self._stages[stage]
        number, position = self._begins[stage]
        done = step - first_step
        left = (self._lane_length - position) // length  # steps until the lanes jump back
        if done < left:
            return number, position + done * length
        passes, done = divmod(done - left, self._lane_length // length)
        return number + 1 + passes, done * length

    def starts(self, step: int) -> np.ndarray:
        number, position = self._place_in(self._stage_of(step), step)
        return self.lanes + position + self._offset(number, below=self.sequence_length)

    def resets(self, step: int) -> np.ndarray:
        _, position = self._place_in(self._stage_of(step), step)
        if position == 0 or not self._carry_reset_rate:
            return np.full(self.batch_size, position == 0)
        generator = np.random.default_rng([self._seed, step, _OF_RESETS])
        return generator.random(self.batch_size) < self._carry_reset_rate


def make_batches(
    tokens: np.ndarray,
    *,
    batching: str,
    carry_reset_rate: float = 0.0,
    **settings: Unpack[Settings],
) -> Batches:
    """Makes the batches of a text; `batches[step]` is the batch of a step.

    Args:
      tokens: [num_chars] ids of the text.
      batching: "chunks" or "lanes".
      carry_reset_rate: "lanes": probability that a lane starts a step from the zero carry.
      settings: see `Batches`.

    Raises:
      UserError: the text is too short for one batch; the message says what would fit.
    """
    if batching == "chunks":
        return Chunks(tokens, **settings)
    return Lanes(tokens, carry_reset_rate=carry_reset_rate, **settings)


def _too_short(
    num_chars: int, batch_size: int, sequence_length: int, chunk: int, *, room: int
) -> UserError:
    most = max(num_chars - 1 - room, 0) // chunk
    fits = f"--config.data.batch_size={most}"
    if not most:
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
