"""Prompt in, text out: `prime`, `sample_step`, and `Sampler`, which runs them in chunks.

A row's text depends on its prompt, the seed and how often the same prompt came before it, and on
nothing else in the batch: prompts of different lengths together give what each gives alone. (To
rounding: a matrix product of one row may take another routine than one of several.)

A chunk is one loop on the device, its noise drawn beforehand. All chunks are one program, so a text
of any length is written without compiling again, and is read while the next chunk is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.choice import make_rules
from charrnn_jax.generation.prompts import encode_prompt, pad, row_keys
from charrnn_jax.generation.rules import (
    Rules,
    apply_rules,
    choose,
    start_memory,
    update_memory,
)
from charrnn_jax.generation.writer import Sample, Writer
from charrnn_jax.models.char_rnn import Carry, CharRNN
from charrnn_jax.models.stepping import check_dtype, prefers_transposed, prepare, step

CHUNK = 50  # characters: at a thousand a second a reader sees them twenty times a second


@struct.dataclass
class SampleState:
    """Everything that generation carries from one character to the next.

    Attributes:
      carry: the recurrent state, after every token but the last.
      token: [B] int32, the last token: the next input.
      key: [B] random keys, one a row; they never change.
      position: [B] int32, characters drawn so far; the noise of the next is drawn with
        fold_in(key, position).
      memory: of the rules, one entry a rule.
    """

    carry: Carry
    token: jax.Array
    key: jax.Array
    position: jax.Array
    memory: tuple[Any, ...] = ()


class Drawn(NamedTuple):
    """Tokens and what the model thought of them.

    Attributes:
      tokens: int32.
      log_probabilities: of the tokens by the model itself, without any rule, in nats.
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
      weights: of the model, from `prepare`.
      prompts: [B, P] int32, padded at the end with anything.
      lengths: [B] characters, each from 1 to P.
      key: [B] random keys.
      model: of the weights.
      rules: by which will be drawn.

    Returns:
      The state in which each row has read just its own prompt.
    """
    carry, last = _read_prompts(weights, prompts, lengths=lengths, model=model)
    memory = start_memory(rules, prompts, lengths)
    state = SampleState(carry, last, key, jnp.zeros_like(last), memory)
    # Committed to a device, as it will be after a step: else the first step would compile apart.
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
    """Reads texts after a state, as if they had been drawn, but for the memory of the rules.

    Args:
      weights: of the model, from `prepare`.
      state: without a memory.
      tokens: [B, P] int32, padded at the end with anything.
      lengths: [B] characters, each from 1 to P.
      model: of the weights.
    """
    carry, _ = step(weights, state.carry, state.token, model=model)
    carry, last = _read_all_but_last(weights, carry, tokens, lengths=lengths, model=model)
    return replace(state, carry=carry, token=last)


def _read_all_but_last(
    weights: Any, carry: Carry, tokens: jax.Array, *, lengths: jax.Array, model: CharRNN
) -> tuple[Carry, jax.Array]:
    """Returns (carry, last token of each row, which the first step of drawing will read)."""

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
    """Returns (next state, what was drawn [size, B]; after num_steps anything)."""
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
    # Behind the loop: there every operation, however small, would cost a step its time.
    of_all = jax.nn.log_softmax(of_all)
    drawn = Drawn(tokens, jnp.take_along_axis(of_all, tokens[..., None], axis=2)[..., 0])
    return SampleState(carry, token, state.key, state.position + num_steps, memory), drawn


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def sample_step(
    weights: Any, state: SampleState, *, model: CharRNN, rules: Rules
) -> tuple[SampleState, Drawn]:
    """Draws the next token of every row.

    Args:
      weights: of the model, from `prepare`.
      state: donated: it cannot be used again.
      model: of the weights.
      rules: from `make_rules`, or your own.

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
    """Up to `CHUNK` times `sample_step` in one loop on the device. Returns (state, [CHUNK, B])."""
    return _sample_steps(weights, state, num_steps, model=model, rules=rules, size=CHUNK)


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

    def generate(
        self, prompts: Sequence[str], *, best_of: int = 1, **settings: Any
    ) -> list[Sample]:
        """Continues every prompt.

        Args:
          prompts: texts; an empty one stands for a line break, the start of a line (for the first
            known character if the text has no line breaks). The same prompt several times gives
            several different samples.
          num_chars: to write after each prompt at most (for a vocabulary of bytes: bytes).
          best_of: texts that are written for each prompt; the one with the lowest loss a character,
            by the model itself, is returned.
          seed: same seed, same text.
          unk: what happens to characters of a prompt that the model does not know: "error", "skip".
          stop: strings before which a text ends.
          rules: your own, instead of a choice; [UNK], where they let it be drawn, ends a text.
          **choice: of `make_rules`: temperature, top_k, top_p, ...

        Raises:
          UserError: a prompt or stop string with unknown characters, a prompt with none that is
            known, or a number out of its range.
          TypeError: `prompts` or `stop` is one text.
          ValueError: another `unk`.
        """
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

    def stream(self, prompts: Sequence[str], **settings: Any) -> Iterator[list[str]]:
        """Yields the next piece of every text as soon as it is there: [B] texts at a time.

        Arguments, but for best_of, and errors, which are raised at once: see `generate`. The pieces
        put together are its texts.
        """
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
        **choice: Any,
    ) -> tuple[Iterator[list[str]], list[Writer]]:
        """Returns (what is to be run through, what collects the texts)."""
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
            if drawn is not None:  # read while the device goes on
                tokens, log_probabilities = fetch(*drawn)
                rows = zip(writers, tokens.T, log_probabilities.T, strict=False)
                yield [writer.add(*row) for writer, *row in rows]
            if all(writer.finish for writer in writers):
                return

    def choose_rules(self, rules: Rules | None = None, **choice: Any) -> Rules:
        """Returns your own rules, or those that `make_rules` makes of a choice."""
        if rules is not None and choice:
            raise TypeError(f"give rules, or {', '.join(choice)}, not both")
        return make_rules(self.vocabulary, **choice) if rules is None else rules

    def prime(self, encoded: Sequence[np.ndarray], *, seed: int, rules: Rules) -> SampleState:
        """Reads prompts of ids; the state has more rows than prompts, see `pad`."""
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
        """Reads a text of ids after a state of one row, as if it had been drawn."""
        padded, lengths = jax.device_put(pad([tokens]))
        return read(self._weights(1), state, tokens=padded, lengths=lengths, model=self.model)

    def draw_chunk(
        self, state: SampleState, num_steps: int, *, rules: Rules
    ) -> tuple[SampleState, Drawn]:
        """Calls `sample_chunk`: the state is donated."""
        weights = self._weights(state.token.shape[0])
        return sample_chunk(weights, state, num_steps=num_steps, model=self.model, rules=rules)

    def _weights(self, num_rows: int) -> Any:
        """Returns the weights in the layout that is best for so many rows."""
        return self._prepare(transposed=prefers_transposed(num_rows, dtype=self.dtype))


def generate(
    params: Any, prompts: Sequence[str], *, model: CharRNN, vocabulary: Vocabulary, **settings: Any
) -> list[Sample]:
    """Continues every prompt; for settings and errors see `Sampler.generate`."""
    return Sampler(params, model=model, vocabulary=vocabulary).generate(prompts, **settings)


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str):
        raise TypeError("prompts is one text; give a list of texts: [prompt]")


def _badness(sample: Sample) -> float:
    return sample.nats_per_char if sample.num_chars else float("inf")


def fetch(drawn: Drawn, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and log-probabilities of the first steps of a chunk, [n, B] each."""
    tokens, log_probabilities = jax.device_get(drawn)
    return tokens[:num_steps], log_probabilities[:num_steps]
