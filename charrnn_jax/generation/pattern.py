"""Regular expressions over the characters of a model: the rule, and `compile_pattern`.

The automaton is built by outlines-core, with the model's characters or bytes as its alphabet. The
syntax is that of Rust's regex crate (no look-around, no back references).
"""

import math
import re
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.rules import Rule


@struct.dataclass
class Pattern(Rule):
    """The text after the prompt matches a regular expression; see `compile_pattern`.

    Where the text so far matches, it may end. The end then has the total probability of all tokens
    that the pattern does not permit. It is drawn as [UNK], which is not a character.

    Attributes:
      next_state: [S, V] int32, state of the automaton after each token; -1: the token is not
        permitted. State 0 is the first, and state S - 1 is the one after the end.
      final: [S] bool, whether the text so far matches.

    The memory is the state of the automaton, [B].
    """

    next_state: jax.Array
    final: jax.Array

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        permitted = self.next_state[memory] >= 0
        rest = jax.nn.logsumexp(logits, axis=-1, where=~permitted)
        end = jnp.where(self.final[memory], rest, -jnp.inf)
        is_end = jnp.arange(logits.shape[-1])[None] == UNK_ID
        return jnp.where(is_end, end[:, None], jnp.where(permitted, logits, -jnp.inf))

    def start(self, prompts: jax.Array, lengths: jax.Array) -> Any:
        return jnp.zeros_like(lengths)

    def update(self, memory: Any, tokens: jax.Array) -> Any:
        following = self.next_state[memory, tokens]
        return jnp.where(tokens == UNK_ID, self.next_state.shape[0] - 1, following)


def compile_pattern(pattern: str, vocabulary: Vocabulary, *, allowed: np.ndarray) -> Pattern:
    """Turns a regular expression into a rule; the most recent rules are cached.

    Args:
      pattern: regular expression that the whole text after the prompt has to match.
      vocabulary: vocabulary of the model.
      allowed: [V] bool, whether the text may contain each token.

    Raises:
      UserError: the expression is not valid, or no text of the allowed characters matches it.
    """
    return _compile(pattern, vocabulary, tuple(np.flatnonzero(allowed).tolist()))


@lru_cache(maxsize=16)
def _compile(pattern: str, vocabulary: Vocabulary, tokens: tuple[int, ...]) -> Pattern:
    transitions, final, first = _automaton(pattern, vocabulary, tokens)
    alive = _can_end(transitions, final)
    if first not in alive:
        raise UserError(
            f"no text of the characters that can be drawn matches the pattern {pattern!r}: change "
            "the pattern, or allow more characters"
        )
    number = {state: i for i, state in enumerate([first, *sorted(alive - {first})])}
    # A power of two, so that patterns of similar size share one compiled program.
    num_states = 1 << len(number).bit_length()
    next_state = np.full((num_states, vocabulary.size), -1, np.int32)
    is_final = np.zeros(num_states, bool)
    is_final[-1] = True  # after the end, only the end can be drawn
    for state, row in number.items():
        is_final[row] = state in final
        for token, following in transitions.get(state, {}).items():
            if following in alive:
                next_state[row, token] = number[following]
    return Pattern(jnp.asarray(next_state), jnp.asarray(is_final))


# Largest product of the counts of repetitions. The automaton has about as many states, and Ctrl-C
# does not interrupt its construction.
_MOST_REPETITIONS = 2_000


def _automaton(
    pattern: str, vocabulary: Vocabulary, tokens: tuple[int, ...]
) -> tuple[dict[int, dict[int, int]], set[int], int]:
    """Returns ({state: {token: next state}}, final states, first state)."""
    import outlines_core

    counts = [int(count) for count in re.findall(r"(\d+)\}", pattern)]
    if math.prod(counts) > _MOST_REPETITIONS:
        raise UserError(
            f"the pattern {pattern!r} repeats too often: the counts in braces must multiply to at "
            f"most {_MOST_REPETITIONS:,}"
        )
    symbols: dict[bytes, list[int]] = {}
    for token in tokens:
        if vocabulary.kind == "bytes":
            symbols[bytes([token - 1])] = [token]
        else:
            symbols[vocabulary.characters[token - 1].encode("utf-8", "surrogatepass")] = [token]
    end = vocabulary.size  # the end token that outlines-core requires; it marks final states
    try:
        index = outlines_core.Index(pattern, outlines_core.Vocabulary(end, symbols))
    except ValueError as error:
        reason = str(error).partition(". ")[0]
        raise UserError(
            f"the pattern {pattern!r} cannot be used ({reason}): write it with the model's "
            "characters, in the syntax of Rust's regex crate, and without ^ and $, since it always "
            "has to match the whole text"
        ) from error
    transitions = {
        state: {token: following for token, following in row.items() if token != end}
        for state, row in index.get_transitions().items()
    }
    return transitions, set(index.get_final_states()), index.get_initial_state()


def _can_end(transitions: dict[int, dict[int, int]], final: set[int]) -> set[int]:
    """Returns the states from which a final state can be reached."""
    before: dict[int, set[int]] = {}
    for state, row in transitions.items():
        for following in row.values():
            before.setdefault(following, set()).add(state)
    alive, queue = set(final), list(final)
    while queue:
        new = before.get(queue.pop(), set()) - alive
        alive |= new
        queue.extend(new)
    return alive
