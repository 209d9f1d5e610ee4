"""Prompt in, text out: `prime`, `sample_step`, and `generate`, one jitted loop over it.

A row's text depends on its prompt, the seed and how often the same prompt came before it, and on
nothing else in the batch: prompts of different lengths together give what each gives alone. (To
rounding: a matrix product of one row may take another routine than one of several.)
"""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.rules import choose, forbid
from charrnn_jax.models.char_rnn import Carry, CharRNN, forward


@struct.dataclass
class SampleState:
    """Everything that generation carries from one character to the next.

    Attributes:
      carry: the recurrent state, behind every token but the last.
      token: [B] int32, the last token: the next input.
      key: [B] random keys, one a row.
    """

    carry: Carry
    token: jax.Array
    key: jax.Array


@partial(jax.jit, static_argnames="model")
def prime(
    params: Any, prompts: jax.Array, *, lengths: jax.Array, key: jax.Array, model: CharRNN
) -> SampleState:
    """Reads prompts of different lengths.

    Args:
      params: of the model.
      prompts: [B, P] int32, padded at the end with anything.
      lengths: [B] characters, each from 1 to P.
      key: [B] random keys.
      model: of the params.

    Returns:
      The state in which each row has read just its own prompt.
    """

    def read(carry: Carry, column: tuple[jax.Array, jax.Array]) -> tuple[Carry, None]:
        token, position = column
        new_carry, _ = forward(params, carry, token[:, None], model=model)
        unread = (position < lengths - 1)[:, None]  # the last token is read by the first step
        return jax.tree.map(lambda new, old: jnp.where(unread, new, old), new_carry, carry), None

    carry = model.initialize_carry(prompts.shape[0])
    carry, _ = jax.lax.scan(read, carry, (prompts.T, jnp.arange(prompts.shape[1])))
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    return SampleState(carry, last, key)


def _sample_step(
    params: Any, state: SampleState, *, model: CharRNN, temperature: jax.Array | float
) -> tuple[SampleState, jax.Array]:
    carry, logits = forward(params, state.carry, state.token[:, None], model=model)
    key, noise_key = jax.vmap(jax.random.split, out_axes=1)(state.key)
    token = choose(noise_key, forbid(logits[:, 0], UNK_ID), temperature)
    return SampleState(carry, token, key), token


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def sample_step(
    params: Any, state: SampleState, *, model: CharRNN, temperature: jax.Array | float = 1.0
) -> tuple[SampleState, jax.Array]:
    """Draws the next token of every row; never `[UNK]`.

    Args:
      params: of the model.
      state: donated: it cannot be used again.
      model: of the params.
      temperature: logits are divided by it; 0 takes the most likely token.

    Returns:
      (next state, tokens [B]).
    """
    return _sample_step(params, state, model=model, temperature=temperature)


@partial(jax.jit, static_argnames=("model", "num_steps"), donate_argnames="state")
def sample_tokens(
    params: Any,
    state: SampleState,
    *,
    model: CharRNN,
    num_steps: int,
    temperature: jax.Array | float = 1.0,
) -> tuple[SampleState, jax.Array]:
    """`num_steps` times `sample_step` in one loop on the device. Returns (state, tokens [B, N])."""

    def step(state: SampleState, _: None) -> tuple[SampleState, jax.Array]:
        return _sample_step(params, state, model=model, temperature=temperature)

    state, tokens = jax.lax.scan(step, state, length=num_steps)
    return state, tokens.T


class Sample(NamedTuple):
    """A prompt and the text that the model wrote behind it."""

    prompt: str
    text: str


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
    if isinstance(prompts, str):
        raise TypeError("prompts is one text; give a list of texts: [prompt]")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be finite and at least 0")
    if num_chars < 1:
        raise ValueError(f"num_chars is {num_chars}; it must be at least 1")
    if not prompts:
        return []
    encoded = [encode_prompt(prompt, vocabulary, unk=unk) for prompt in prompts]
    lengths = np.array([len(tokens) for tokens in encoded], np.int32)
    # A power of two, so that prompts of similar length share one compiled program.
    padded = np.zeros((len(encoded), 1 << int(lengths.max() - 1).bit_length()), np.int32)
    for row, tokens in zip(padded, encoded, strict=True):
        row[: len(tokens)] = tokens
    key = _row_keys(seed, encoded)
    padded, lengths = jax.device_put((padded, lengths))
    state = prime(params, padded, lengths=lengths, key=key, model=model)
    _, tokens = sample_tokens(
        params, state, model=model, num_steps=num_chars, temperature=temperature
    )
    texts = map(vocabulary.decode, jax.device_get(tokens))
    return [Sample(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


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
