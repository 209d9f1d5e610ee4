"""Prompt in, text out: `prime`, `sample_step`, and `Sampler`, which runs them in chunks.

A row's text depends on its prompt, the seed and how often the same prompt came before it, and on
nothing else in the batch: prompts of different lengths together give what each gives alone. (To
rounding: a matrix product of one row may take another routine than one of several.)

A chunk is one loop on the device, its noise drawn beforehand. All chunks are one program, so a text
of any length is written without compiling again, and is read while the next chunk is computed.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.rules import choose, forbid
from charrnn_jax.models.char_rnn import Carry, CharRNN
from charrnn_jax.models.stepping import check_dtype, prefers_transposed, prepare, step

CHUNK = 50  # characters: at a thousand a second a reader sees them twenty times a second


@struct.dataclass
class SampleState:
    """Everything that generation carries from one character to the next.

    Attributes:
      carry: the recurrent state, behind every token but the last.
      token: [B] int32, the last token: the next input.
      key: [B] random keys, one a row; they never change.
      position: [B] int32, characters drawn so far; the noise of the next is drawn with
        fold_in(key, position).
    """

    carry: Carry
    token: jax.Array
    key: jax.Array
    position: jax.Array


@partial(jax.jit, static_argnames="model")
def prime(
    weights: Any, prompts: jax.Array, *, lengths: jax.Array, key: jax.Array, model: CharRNN
) -> SampleState:
    """Reads prompts of different lengths.

    Args:
      weights: of the model, from `prepare`.
      prompts: [B, P] int32, padded at the end with anything.
      lengths: [B] characters, each from 1 to P.
      key: [B] random keys.
      model: of the weights.

    Returns:
      The state in which each row has read just its own prompt.
    """

    def read(carry: Carry, column: tuple[jax.Array, jax.Array]) -> tuple[Carry, None]:
        token, position = column
        new_carry, _ = step(weights, carry, token, model=model)
        unread = (position < lengths - 1)[:, None]  # the last token is read by the first step
        return jax.tree.map(lambda new, old: jnp.where(unread, new, old), new_carry, carry), None

    carry = model.initialize_carry(prompts.shape[0])
    carry, _ = jax.lax.scan(read, carry, (prompts.T, jnp.arange(prompts.shape[1])))
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    return SampleState(carry, last, key, jnp.zeros_like(last))


def _sample_steps(
    weights: Any,
    state: SampleState,
    *,
    model: CharRNN,
    temperature: jax.Array | float,
    num_steps: int,
) -> tuple[SampleState, jax.Array]:
    """Returns (next state, tokens [N, B])."""
    positions = state.position[None] + jnp.arange(num_steps)[:, None]  # [N, B]
    keys = jax.vmap(jax.vmap(jax.random.fold_in), (None, 0))(state.key, positions)
    draw = partial(jax.random.gumbel, shape=(model.vocabulary_size,))
    noise = jax.vmap(jax.vmap(draw))(keys)  # [N, B, V]

    def draw_next(last: Any, noise: jax.Array) -> tuple[Any, jax.Array]:
        carry, logits = step(weights, *last, model=model)
        token = choose(forbid(logits, UNK_ID), noise=noise, temperature=temperature)
        return (carry, token), token

    (carry, token), tokens = jax.lax.scan(draw_next, (state.carry, state.token), noise)
    return SampleState(carry, token, state.key, state.position + num_steps), tokens


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def sample_step(
    weights: Any, state: SampleState, *, model: CharRNN, temperature: jax.Array | float = 1.0
) -> tuple[SampleState, jax.Array]:
    """Draws the next token of every row; never `[UNK]`.

    Args:
      weights: of the model, from `prepare`.
      state: donated: it cannot be used again.
      model: of the weights.
      temperature: logits are divided by it; 0 takes the most likely token.

    Returns:
      (next state, tokens [B]).
    """
    state, tokens = _sample_steps(weights, state, model=model, temperature=temperature, num_steps=1)
    return state, tokens[0]


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def sample_chunk(
    weights: Any, state: SampleState, *, model: CharRNN, temperature: jax.Array | float = 1.0
) -> tuple[SampleState, jax.Array]:
    """`CHUNK` times `sample_step` in one loop on the device. Returns (state, tokens [CHUNK, B])."""
    return _sample_steps(weights, state, model=model, temperature=temperature, num_steps=CHUNK)


class Sample(NamedTuple):
    """A prompt and the text that the model wrote behind it."""

    prompt: str
    text: str


class Sampler:
    """A trained model with its weights laid out for generating; kept while there is more to write.

    Args:
      params: of the model.
      model: of the params.
      vocabulary: of the model.
      dtype: "float32" or "bfloat16", of the operands of products; None: the model's.

    Raises:
      ValueError: another dtype, or one that the model cannot compute in.
    """

    def __init__(
        self, params: Any, *, model: CharRNN, vocabulary: Vocabulary, dtype: str | None = None
    ):
        self.dtype = dtype or model.dtype
        check_dtype(self.dtype, model=model)
        self.model = model
        self.vocabulary = vocabulary
        self._prepare = cache(partial(prepare, params, model=model, dtype=self.dtype))

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Sample]:
        """Continues every prompt; arguments and errors: see the function `generate`."""
        pieces = list(self.stream_tokens(prompts, **settings))
        texts = map(self.vocabulary.decode, np.concatenate(pieces, axis=1) if pieces else [])
        return [Sample(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def stream(self, prompts: Sequence[str], **settings: Any) -> Iterator[list[str]]:
        """Yields the next piece of every text as soon as it is there: [B] texts at a time.

        Arguments and errors: see `generate`. The pieces put together are its texts.
        """
        decoders = [self.vocabulary.make_decoder() for _ in prompts]
        return _decode_pieces(self.stream_tokens(prompts, **settings), decoders)

    def stream_tokens(
        self,
        prompts: Sequence[str],
        *,
        num_chars: int,
        temperature: float = 1.0,
        seed: int = 0,
        unk: str = "error",
    ) -> Iterator[np.ndarray]:
        """Yields the tokens behind every prompt as they are drawn, [B, n] at a time.

        Arguments and errors: see `generate`; they are checked at once.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts is one text; give a list of texts: [prompt]")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be finite and at least 0")
        if num_chars < 1:
            raise ValueError(f"num_chars is {num_chars}; it must be at least 1")
        encoded = [encode_prompt(prompt, self.vocabulary, unk=unk) for prompt in prompts]
        return self._draw(encoded, num_chars=num_chars, temperature=temperature, seed=seed)

    def _draw(
        self, encoded: list[np.ndarray], *, num_chars: int, temperature: float, seed: int
    ) -> Iterator[np.ndarray]:
        if not encoded:
            return
        weights = self._prepare(transposed=prefers_transposed(len(encoded), dtype=self.dtype))
        lengths = np.array([len(tokens) for tokens in encoded], np.int32)
        # A power of two, so that prompts of similar length share one compiled program.
        padded = np.zeros((len(encoded), 1 << int(lengths.max() - 1).bit_length()), np.int32)
        for row, tokens in zip(padded, encoded, strict=True):
            row[: len(tokens)] = tokens
        key = _row_keys(seed, encoded)
        padded, lengths = jax.device_put((padded, lengths))
        state = prime(weights, padded, lengths=lengths, key=key, model=self.model)
        ahead: jax.Array | None = None
        for _ in range(0, num_chars, CHUNK):
            drawn = ahead
            state, ahead = sample_chunk(weights, state, model=self.model, temperature=temperature)
            if drawn is not None:  # read while the device goes on
                yield jax.device_get(drawn).T
        yield jax.device_get(ahead)[: (num_chars - 1) % CHUNK + 1].T


def _decode_pieces(
    pieces: Iterator[np.ndarray], decoders: list[Callable[[np.ndarray | None], str]]
) -> Iterator[list[str]]:
    for tokens in pieces:
        yield [decode(row) for decode, row in zip(decoders, tokens, strict=True)]
    if any(rest := [decode(None) for decode in decoders]):
        yield rest


def generate(
    params: Any,
    prompts: Sequence[str],
    *,
    model: CharRNN,
    vocabulary: Vocabulary,
    num_chars: int,
    temperature: float = 1.0,
    seed: int = 0,
    unk: str = "error",
) -> list[Sample]:
    """Continues every prompt by `num_chars` characters (for a vocabulary of bytes: bytes).

    Args:
      params: of the model.
      prompts: texts; an empty one stands for a line break, the start of a line (for the first known
        character if the text has no line breaks). The same prompt several times gives several
        different samples.
      model: of the params.
      vocabulary: of the model.
      num_chars: to write behind each prompt, at least 1.
      temperature: 0 is greedy, 1 the model's own distribution.
      seed: same seed, same text.
      unk: what happens to characters of a prompt that the model does not know: "error" or "skip".

    Raises:
      UserError: a prompt with unknown characters, or with none that is known.
      TypeError: `prompts` is one text.
      ValueError: a temperature or `num_chars` out of its range, or another `unk`.
    """
    sampler = Sampler(params, model=model, vocabulary=vocabulary)
    return sampler.generate(
        prompts, num_chars=num_chars, temperature=temperature, seed=seed, unk=unk
    )


def encode_prompt(prompt: str, vocabulary: Vocabulary, *, unk: str = "error") -> np.ndarray:
    """Returns [num_chars] ids, at least one; see `generate`.

    Raises:
      UserError: the prompt has unknown characters, or none that is known.
    """
    if not prompt:
        line_break = vocabulary.encode("\n", unk="skip")
        return line_break if line_break.size else np.array([UNK_ID + 1], vocabulary.dtype)
    tokens = vocabulary.encode(prompt, unk=unk)
    if tokens.size == 0:
        raise UserError(
            f"the prompt {prompt!r} has no character that the model knows: give one that has, "
            f"such as {vocabulary.decode([UNK_ID + 1])!r}"
        )
    return tokens


def _row_keys(seed: int, encoded: Sequence[np.ndarray]) -> jax.Array:
    """[B] keys that depend on the seed, the row's prompt and its number among equal prompts."""
    seen: Counter[bytes] = Counter()
    key = jax.random.key(seed)
    keys = []
    for tokens in encoded:
        identity = tokens.astype(np.uint32).tobytes()
        prompt_key = jax.random.fold_in(key, zlib.crc32(identity))
        keys.append(jax.random.fold_in(prompt_key, seen[identity]))
        seen[identity] += 1
    return jnp.stack(keys)
