"""Prompt in, text out: `prime`, `sample_step`, and `Sampler`, which draws in chunks.

The text of a row depends only on its prompt, the seed, and the number of equal prompts before it.
Prompts of different lengths give the same texts together as alone. (This holds up to rounding,
since a matrix product may use another routine for one row than for several.)

A chunk is one loop on the device, with its noise drawn beforehand. All chunks run the same program,
so a text of any length is written without compiling again. The host reads a chunk while the device
computes the next one.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple, Required, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.choice import Choice, check_keywords, make_rules
from charrnn_jax.generation.prompts import encode_prompt, pad, row_keys
from charrnn_jax.generation.rules import (
    Rules,
    apply_rules,
    choose,
    start_memory,
    update_memory,
)
from charrnn_jax.generation.writer import Sample, Writer
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params
from charrnn_jax.models.clamping import Clamp, check_clamp, clamp_units
from charrnn_jax.models.stepping import check_dtype, prefers_transposed, prepare, step


class Settings(Choice, total=False):
    """Keyword arguments of `Sampler.generate`, for type checkers."""

    num_chars: Required[int]
    seed: int
    unk: str
    stop: Sequence[str]
    rules: Rules | None


CHUNK = 50  # characters; at 1,000 per second, new text appears 20 times per second


@struct.dataclass
class SampleState:
    """Everything that generation carries from one character to the next.

    Attributes:
      carry: carry after every token but the last.
      token: [B] int32, the last token, which is the next input.
      key: [B] random keys, which never change.
      position: [B] int32, number of characters drawn so far; the noise of the next one is drawn
        with fold_in(key, position).
      memory: memory of each rule.
    """

    carry: Carry
    token: jax.Array
    key: jax.Array
    position: jax.Array
    memory: tuple[Any, ...] = ()


class Drawn(NamedTuple):
    """Tokens that were drawn.

    Attributes:
      tokens: int32 ids.
      log_probabilities: their log-probabilities in nats under the model itself, without any rules.
    """

    tokens: jax.Array
    log_probabilities: jax.Array


def prime(
    weights: Any,
    prompts: jax.Array,
    *,
    lengths: jax.Array,
    key: jax.Array,
    model: CharRNN,
    rules: Rules,
) -> SampleState:
    """Reads prompts of different lengths.

    Args:
      weights: weights of the model, as returned by `prepare`.
      prompts: [B, P] int32 ids, with arbitrary padding at the end.
      lengths: [B] lengths of the prompts in characters, from 1 to P.
      key: [B] random keys.
      model: the model.
      rules: rules that the text will be drawn with.

    Returns:
      The state in which each row has read its own prompt.
    """
    carry, last = _read_prompts(weights, prompts, lengths=lengths, model=model)
    memory = start_memory(rules, prompts, lengths)
    state = SampleState(carry, last, key, jnp.zeros_like(last), memory)
    # Committed to a device, as after a step; otherwise the first step would be compiled separately.
    return jax.device_put(state, last.sharding)


@partial(jax.jit, static_argnames="model")
def _read_prompts(
    weights: Any, prompts: jax.Array, *, lengths: jax.Array, model: CharRNN
) -> tuple[Carry, jax.Array]:
    carry = model.initialize_carry(prompts.shape[0])
    return _read_all_but_last(weights, carry, prompts, lengths=lengths, model=model)


@partial(jax.jit, static_argnames="model")
def read(
    weights: Any, state: SampleState, *, tokens: jax.Array, lengths: jax.Array, model: CharRNN
) -> SampleState:
    """Reads texts after a state, as if they had been drawn. The memory of rules is not updated.

    Args:
      weights: weights of the model, as returned by `prepare`.
      state: state without the memory of rules.
      tokens: [B, P] int32 ids, with arbitrary padding at the end.
      lengths: [B] lengths of the texts in characters, from 1 to P.
      model: the model.

    Returns:
      The state after the texts.
    """
    carry, _ = step(weights, state.carry, state.token, model=model)
    carry, last = _read_all_but_last(weights, carry, tokens, lengths=lengths, model=model)
    return replace(state, carry=carry, token=last)


def _read_all_but_last(
    weights: Any, carry: Carry, tokens: jax.Array, *, lengths: jax.Array, model: CharRNN
) -> tuple[Carry, jax.Array]:
    """Returns (carry, last token of each row, which the first step of drawing reads)."""

    def read_column(carry: Carry, column: tuple[jax.Array, jax.Array]) -> tuple[Carry, None]:
        token, position = column
        new_carry, _ = step(weights, carry, token, model=model)
        unread = position < lengths - 1

        def choose_rows(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(unread.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose_rows, new_carry, carry), None

    carry, _ = jax.lax.scan(read_column, carry, (tokens.T, jnp.arange(tokens.shape[1])))
    return carry, jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]


def _sample_steps(
    weights: Any,
    state: SampleState,
    num_steps: jax.Array | int,
    *,
    model: CharRNN,
    rules: Rules,
    size: int,
) -> tuple[SampleState, Drawn]:
    """Returns (next state, what was drawn [size, B], which is arbitrary after num_steps)."""
    positions = state.position[None] + jnp.arange(size)[:, None]  # [N, B]
    keys = jax.vmap(jax.vmap(jax.random.fold_in), (None, 0))(state.key, positions)
    draw = partial(jax.random.gumbel, shape=(model.vocabulary_size,))
    noise = jax.vmap(jax.vmap(draw))(keys)  # [N, B, V]

    def draw_next(i: jax.Array, last: Any) -> Any:
        carry, token, memory, tokens, of_all = last
        carry, logits = step(weights, carry, token, model=model)
        token = choose(apply_rules(rules, logits, memory), noise=noise[i])
        memory = update_memory(rules, memory, token)
        return carry, token, memory, tokens.at[i].set(token), of_all.at[i].set(logits)

    tokens, of_all = jnp.zeros(noise.shape[:2], jnp.int32), jnp.zeros_like(noise)
    first = (state.carry, state.token, state.memory, tokens, of_all)
    carry, token, memory, tokens, of_all = jax.lax.fori_loop(0, num_steps, draw_next, first)
    # After the loop, in which every operation, however small, makes all steps slower.
    of_all = jax.nn.log_softmax(of_all)
    drawn = Drawn(tokens, jnp.take_along_axis(of_all, tokens[..., None], axis=2)[..., 0])
    return SampleState(carry, token, state.key, state.position + num_steps, memory), drawn


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def sample_step(
    weights: Any, state: SampleState, *, model: CharRNN, rules: Rules
) -> tuple[SampleState, Drawn]:
    """Draws the next token of every row.

    Args:
      weights: weights of the model, as returned by `prepare`.
      state: current state; it is donated and cannot be used again.
      model: the model.
      rules: rules from `make_rules`, or your own.

    Returns:
      (next state, what was drawn [B]).
    """
    state, drawn = _sample_steps(weights, state, 1, model=model, rules=rules, size=1)
    return state, Drawn(drawn.tokens[0], drawn.log_probabilities[0])


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def sample_chunk(
    weights: Any,
    state: SampleState,
    *,
    model: CharRNN,
    rules: Rules,
    num_steps: jax.Array | int = CHUNK,
) -> tuple[SampleState, Drawn]:
    """Draws up to `CHUNK` tokens for every row, in one loop on the device.

    Args:
      weights: weights of the model, as returned by `prepare`.
      state: current state; it is donated and cannot be used again.
      model: the model.
      rules: rules from `make_rules`, or your own.
      num_steps: number of tokens to draw for each row, at most `CHUNK`.

    Returns:
      (next state, what was drawn [CHUNK, B], which is arbitrary after num_steps).
    """
    return _sample_steps(weights, state, num_steps, model=model, rules=rules, size=CHUNK)


class Sampler:
    """A trained model with its weights arranged for generation; keep it to write several texts.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      model: the model.
      vocabulary: vocabulary of the model.
      dtype: type of the operands of products, "float32" or "bfloat16"; None: the model's.
      clamp: {(layer, unit): value}, counted from 0: hidden units that are held at a value while
        prompts are read and texts are written, see `models.clamping`; None: none.

    Raises:
      UserError: the dtype is unknown, or the model does not support it; see also `check_clamp`.
    """

    def __init__(
        self,
        params: Params,
        *,
        model: CharRNN,
        vocabulary: Vocabulary,
        dtype: str | None = None,
        clamp: Clamp | None = None,
    ):
        self.dtype = dtype or model.dtype
        check_dtype(self.dtype, model=model)
        self.model = model
        self.vocabulary = vocabulary
        self._prepare = cache(partial(prepare, params, model=model, dtype=self.dtype))
        self.clamp = dict(clamp or {})
        check_clamp(self.clamp, model=model)

    def with_clamp(self, clamp: Clamp) -> "Sampler":
        """Returns a sampler of the same weights that holds these units, and no others.

        Args:
          clamp: {(layer, unit): value}, see the class. All clamps share the compiled programs.

        Raises:
          UserError: see `check_clamp`.
        """
        check_clamp(clamp, model=self.model)
        other = copy(self)
        other.clamp = dict(clamp)
        return other

    def generate(
        self, prompts: Sequence[str], *, best_of: int = 1, **settings: Unpack[Settings]
    ) -> list[Sample]:
        """Continues every prompt.

        Args:
          prompts: texts to continue. An empty one stands for a line break, the start of a line, or
            for the first character of a vocabulary without line breaks. Equal prompts give
            different samples.
          num_chars: largest number of characters to write after each prompt (for a vocabulary of
            bytes: bytes).
          best_of: number of texts to write for each prompt, of which the one with the lowest loss
            per character under the model itself is returned.
          seed: random seed, from 0 to 4294967295; the same seed gives the same texts.
          unk: what to do with unknown characters in a prompt: "error", or "skip" (drop them).
          stop: strings before which a text ends.
          rules: your own rules, instead of `choice`; if they let [UNK] be drawn, it ends the text.
          **choice: settings of `make_rules`: temperature, top_k, top_p, ...

        Returns:
          One sample for each prompt.

        Raises:
          UserError: a prompt or a stop string has unknown characters, a prompt has no known ones,
            or a number is out of range.
          TypeError: `prompts` or `stop` is a single text, or there is no such setting.
          ValueError: `unk` has another value.
        """
        check_keywords(settings, known=Settings, function="generate")
        if best_of < 1:
            raise UserError(f"best_of is {best_of}; it must be at least 1")
        _check_prompts(prompts)
        repeated = [prompt for prompt in prompts for _ in range(best_of)]
        pieces, writers = self._write(repeated, **settings)
        for _ in pieces:
            pass
        samples = [writer.sample(prompt) for writer, prompt in zip(writers, repeated, strict=True)]
        groups = [samples[i : i + best_of] for i in range(0, len(samples), best_of)]
        return [min(group, key=_badness) for group in groups]

    def stream(self, prompts: Sequence[str], **settings: Unpack[Settings]) -> Iterator[list[str]]:
        """Yields the next piece of every text as soon as it is drawn, as a list of B strings.

        The pieces of a text add up to the text that `generate` returns. Arguments (without best_of)
        and errors are those of `generate`; errors are raised by the call, not by the iterator.
        """
        check_keywords(settings, known=Settings, function="stream")
        _check_prompts(prompts)
        return self._write(prompts, **settings)[0]

    def _write(
        self,
        prompts: Sequence[str],
        *,
        num_chars: int,
        seed: int = 0,
        unk: str = "error",
        stop: Sequence[str] = (),
        rules: Rules | None = None,
        **choice: Unpack[Choice],
    ) -> tuple[Iterator[list[str]], list[Writer]]:
        """Returns (iterator that draws and yields the pieces, writers that collect the texts)."""
        if num_chars < 1:
            raise UserError(f"num_chars is {num_chars}; it must be at least 1")
        rules = self.choose_rules(rules, **choice)
        encoded = [encode_prompt(prompt, self.vocabulary, unk=unk) for prompt in prompts]
        writers = [Writer(self.vocabulary, num_chars=num_chars, stop=stop) for _ in prompts]
        if not encoded:
            return iter(()), writers
        return self._run(encoded, writers, num_chars=num_chars, seed=seed, rules=rules), writers

    def _run(
        self,
        encoded: list[np.ndarray],
        writers: list[Writer],
        *,
        num_chars: int,
        seed: int,
        rules: Rules,
    ) -> Iterator[list[str]]:
        state = self.prime(encoded, seed=seed, rules=rules)
        ahead: tuple[Drawn, int] | None = None
        for done in chain(range(0, num_chars, CHUNK), (None,)):
            drawn = ahead
            if done is not None:
                num_steps = min(CHUNK, num_chars - done)
                state, new = self.draw_chunk(state, num_steps, rules=rules)
                ahead = new, num_steps
            if drawn is not None:  # read while the device computes the next chunk
                tokens, log_probabilities = fetch(*drawn)
                rows = zip(writers, tokens.T, log_probabilities.T, strict=False)
                yield [writer.add(*row) for writer, *row in rows]
            if all(writer.finish for writer in writers):
                return

    def choose_rules(self, rules: Rules | None = None, **choice: Unpack[Choice]) -> Rules:
        """Returns your own rules, or those that `make_rules` makes from settings."""
        if rules is not None and choice:
            raise TypeError(f"give rules, or {', '.join(choice)}, not both")
        return make_rules(self.vocabulary, **choice) if rules is None else rules

    def prime(self, encoded: Sequence[np.ndarray], *, seed: int, rules: Rules) -> SampleState:
        """Reads encoded prompts. The state may have more rows than there are prompts, see `pad`."""
        padded, lengths = pad(encoded)
        num_rows = len(padded)
        prompts, lengths = jax.device_put((padded, lengths))
        return prime(
            self._weights(num_rows),
            prompts,
            lengths=lengths,
            key=row_keys(seed, encoded, num_rows=num_rows),
            model=self.model,
            rules=rules,
        )

    def read(self, state: SampleState, tokens: np.ndarray) -> SampleState:
        """Reads an encoded text after a state with one row, as if it had been drawn."""
        padded, lengths = jax.device_put(pad([tokens]))
        return read(self._weights(1), state, tokens=padded, lengths=lengths, model=self.model)

    def draw_chunk(
        self, state: SampleState, num_steps: int, *, rules: Rules
    ) -> tuple[SampleState, Drawn]:
        """Draws the next chunk with `sample_chunk`; the state is donated."""
        weights = self._weights(state.token.shape[0])
        return sample_chunk(weights, state, num_steps=num_steps, model=self.model, rules=rules)

    def _weights(self, num_rows: int) -> Any:
        """Returns the weights in the layout that is fastest for this number of rows."""
        weights = self._prepare(transposed=prefers_transposed(num_rows, dtype=self.dtype))
        return clamp_units(weights, self.clamp, model=self.model)


def generate(
    params: Params,
    prompts: Sequence[str],
    *,
    model: CharRNN,
    vocabulary: Vocabulary,
    best_of: int = 1,
    clamp: Clamp | None = None,
    **settings: Unpack[Settings],
) -> list[Sample]:
    """Continues every prompt; for arguments and errors, see `Sampler` and `Sampler.generate`."""
    return Sampler(params, model=model, vocabulary=vocabulary, clamp=clamp).generate(
        prompts, best_of=best_of, **settings
    )


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str):
        raise TypeError("prompts is a single text; give a list of texts: [prompt]")


def _badness(sample: Sample) -> float:
    return sample.nats_per_char if sample.num_chars else float("inf")


def fetch(drawn: Drawn, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, log-probabilities) of the first steps of a chunk, [num_steps, B] each."""
    tokens, log_probabilities = jax.device_get(drawn)
    return tokens[:num_steps], log_probabilities[:num_steps]
