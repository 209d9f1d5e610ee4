"""How the next token is chosen: rules, each of which turns logits into logits.

Rules are applied one behind the other; what is left at the end is drawn from, by `choose`. A rule
is a frozen dataclass whose numbers are leaves of a pytree, so another temperature or another k runs
the same compiled program. Most rules look at the logits alone. One that looks at the text, too,
keeps what it needs of it in a memory, one entry a row, so no row's text depends on another's.

Top-k and top-p need no sorted logits, only the threshold: it is found bit by bit, by 32 sums over
all tokens, which on a CPU is ten times as fast as sorting.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.registry import RULES

WINDOW = 512  # characters that `NoRepeat` looks back


@struct.dataclass
class Rule:
    """What all rules have in common; one that looks at the logits alone overrides `__call__`."""

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        """[B, V] -> [B, V]; -inf: the token cannot be drawn."""
        raise NotImplementedError

    def start(self, prompts: jax.Array, lengths: jax.Array) -> Any:
        """Returns the memory behind prompts [B, P], of which `lengths` [B] tokens count."""
        return ()

    def update(self, memory: Any, tokens: jax.Array) -> Any:
        """Returns the memory behind the next tokens [B]."""
        return memory


@struct.dataclass
class Allow(Rule):
    """Only some tokens can be drawn. allowed: [V] bool."""

    allowed: jax.Array

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        return jnp.where(self.allowed[None], logits, -jnp.inf)


@struct.dataclass
class Greedy(Rule):
    """Only the most likely token can be drawn; of several equal ones the first."""

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1])[None] == best, 0.0, -jnp.inf)


@struct.dataclass
class Temperature(Rule):
    """logits / temperature, which is above 0: below 1 the likely becomes likelier."""

    temperature: jax.Array | float

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        return logits / self.temperature


@struct.dataclass
class TopK(Rule):
    """Only the k most likely tokens, and any as likely as the last of them.

    Source: Fan et al. 2018 (arXiv:1805.04833).
    """

    k: jax.Array | int

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        logits = jnp.where(logits == 0, 0.0, logits)  # there is a -0.0, too
        bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
        # Integers in the order of the floats: those of floats below 0 run backwards.
        keys = jnp.where(bits < 0, ~bits, bits | jnp.int32(-(2**31))).astype(jnp.uint32)
        return _keep_most(logits, keys, weights=jnp.ones_like(logits), at_least=self.k)


@struct.dataclass
class TopP(Rule):
    """Only the fewest most likely tokens that together have a probability of at least p.

    Tokens as likely as the last of them stay, too.

    Source: nucleus sampling, Holtzman et al. 2020 (arXiv:1904.09751).
    """

    p: jax.Array | float

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        probabilities = jax.nn.softmax(logits)
        keys = jax.lax.bitcast_convert_type(probabilities, jnp.uint32)  # in the order of the floats
        return _keep_most(logits, keys, weights=probabilities, at_least=self.p)


@struct.dataclass
class MinP(Rule):
    """Only tokens at least p times as likely as the most likely one.

    Source: Nguyen et al. 2024 (arXiv:2407.01082).
    """

    p: jax.Array | float

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        least = logits.max(-1, keepdims=True) + jnp.log(self.p)
        return jnp.where(logits >= least, logits, -jnp.inf)


@struct.dataclass
class NoRepeat(Rule):
    """No stretch of `length` characters is written a second time: loops break.

    The prompt counts as written. Where nothing else could be drawn the rule gives way.

    Attributes:
      length: characters, at least 1.
      window: static; characters back to which the text is known.

    The memory is (recent [B, W]: the last tokens, -1 before the text; shared [B, W]: of the text
    that ends at each of them, how many characters are also the end of all text).

    Source: n-gram blocking, Paulus et al. 2017 (arXiv:1705.04304).
    """

    length: jax.Array | int
    window: int = struct.field(pytree_node=False, default=WINDOW)

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        recent, shared = memory
        # recent[j + 1] came behind the text that ends at j; at the end itself nothing came yet.
        repeats = (shared[:, :-1] >= self.length - 1) & (recent[:, 1:] >= 0)
        followers = jnp.where(repeats, recent[:, 1:], logits.shape[-1])  # no token: dropped
        rows = jnp.arange(logits.shape[0])[:, None]
        blocked = jnp.zeros(logits.shape, bool).at[rows, followers].set(True, mode="drop")
        kept = jnp.where(blocked, -jnp.inf, logits)
        stuck = kept.max(-1, keepdims=True) == -jnp.inf
        return jnp.where(stuck, logits, kept)

    def start(self, prompts: jax.Array, lengths: jax.Array) -> Any:
        columns = lengths[:, None] - self.window + jnp.arange(self.window)[None]  # [B, W]
        tokens = jnp.take_along_axis(prompts, jnp.maximum(columns, 0), axis=1)
        tokens = jnp.where(columns < 0, -1, tokens)
        nothing = jnp.full_like(tokens, -1), jnp.zeros_like(tokens)
        memory, _ = jax.lax.scan(
            lambda memory, tokens: (self.update(memory, tokens), None), nothing, tokens.T
        )
        return memory

    def update(self, memory: Any, tokens: jax.Array) -> Any:
        recent, shared = memory
        recent = jnp.concatenate([recent[:, 1:], tokens[:, None]], axis=1)
        # What ends at j now ended at j + 1 before: so `shared` moves by itself. It knows no more
        # than the window: what is read again gives the same.
        longer = jnp.minimum(shared + 1, jnp.arange(1, self.window + 1)[None])
        return recent, jnp.where(recent == tokens[:, None], longer, 0)


@struct.dataclass
class Pattern(Rule):
    """The text behind the prompt matches a regular expression; see `compile_pattern`.

    Where the text so far matches, it may end: what the pattern does not permit then stands for the
    end, with all its probability. The end is drawn as [UNK], which is no character.

    Attributes:
      next_state: [S, V] int32; -1: the pattern does not permit the token there. State 0 is the
        first, state S - 1 is behind the end.
      final: [S] bool, whether the text so far matches.

    The memory is the state, [B].
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


def _keep_most(
    logits: jax.Array, keys: jax.Array, *, weights: jax.Array, at_least: jax.Array | float
) -> jax.Array:
    """Keeps the tokens of the highest keys, as few as weigh at least so much together.

    keys: [B, V] uint32. All stay if all together weigh less.
    """

    def try_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.uint32(2**31) >> i.astype(jnp.uint32))
        weight = jnp.where(keys >= higher, weights, 0).sum(-1, keepdims=True)
        return jnp.where(weight >= at_least, higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros((logits.shape[0], 1), jnp.uint32))
    return jnp.where(keys >= threshold, logits, -jnp.inf)


# --- several rules ------------------------------------------------------------------------------

Rules = tuple[Rule, ...]


@jax.jit
def start_memory(rules: Rules, prompts: jax.Array, lengths: jax.Array) -> tuple[Any, ...]:
    """Returns the memory of every rule behind the prompts."""
    return tuple(rule.start(prompts, lengths) for rule in rules)


def apply_rules(rules: Rules, logits: jax.Array, memory: tuple[Any, ...]) -> jax.Array:
    """Applies one rule behind the other. logits: [B, V]; returns [B, V]."""
    for rule, rule_memory in zip(rules, memory, strict=True):
        logits = rule(logits, rule_memory)
    return logits


def update_memory(rules: Rules, memory: tuple[Any, ...], tokens: jax.Array) -> tuple[Any, ...]:
    """Returns the memory of every rule behind the next tokens [B]."""
    return tuple(
        rule.update(rule_memory, tokens) for rule, rule_memory in zip(rules, memory, strict=True)
    )


def choose(logits: jax.Array, *, noise: jax.Array) -> jax.Array:
    """Draws token ~ softmax(logits), row by row, as argmax(logits + g).

    Args:
      logits: [B, V].
      noise: [B, V] of `jax.random.gumbel`.

    Returns:
      [B] int32 tokens.

    Source: Gumbel 1954; Maddison et al. 2014 (arXiv:1411.0030).
    """
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def make_rules(
    vocabulary: Vocabulary,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    no_repeat: int = 0,
    allow: str = "",
    forbid: str = "",
    pattern: str = "",
    own: Sequence[str] = (),
) -> Rules:
    """Puts rules together, in the order in which they make sense. `[UNK]` is never drawn.

    Args:
      vocabulary: of the model.
      temperature: 0 is greedy, 1 the model's own distribution.
      top_k: tokens that can be drawn; 0: all.
      top_p: probability of the tokens that can be drawn, at a temperature; 1: all.
      min_p: probability of a token, as a fraction of the likeliest one's; 0: all.
      no_repeat: characters that are not written a second time in a row; 0: no such rule.
      allow: characters that can be drawn; "": all.
      forbid: characters that cannot.
      pattern: a regular expression that the text after the prompt matches; "": any text.
      own: names of registered rules, which come before the temperature.

    Raises:
      UserError: a number out of its range, characters that the model does not know, or a pattern
        that cannot be used.
    """
    ranges = {
        "temperature": (
            temperature,
            temperature == 0 or 1e-6 <= temperature <= 1e6,
            "0, or from 1e-6 to 1e6",
        ),
        "top_k": (top_k, top_k in range(2**31), "a whole number below 2**31"),
        "top_p": (top_p, 1e-6 <= top_p <= 1, "from 1e-6 to 1"),
        "min_p": (min_p, 0 <= min_p <= 1, "from 0 to 1"),
        "no_repeat": (no_repeat, no_repeat in range(WINDOW + 1), f"from 0 to {WINDOW}"),
    }
    for name, (value, is_in_range, requirement) in ranges.items():
        if not is_in_range:
            raise UserError(f"{name} is {value}; it must be {requirement}")
    allowed = _allowed(vocabulary, allow=allow, forbid=forbid)
    rules: list[Rule] = [Allow(jnp.asarray(allowed))]
    if pattern:
        from charrnn_jax.generation.pattern import compile_pattern

        # It uses allowed characters only; all others may stand for its end.
        rules = [Allow(jnp.arange(vocabulary.size) != UNK_ID)]
        rules.append(compile_pattern(pattern, vocabulary, allowed=allowed))
    if no_repeat:
        rules.append(NoRepeat(no_repeat))
    rules += [RULES[name](vocabulary) for name in own]
    rules.append(Temperature(temperature) if temperature else Greedy())
    if top_k:
        rules.append(TopK(top_k))
    if top_p < 1:
        rules.append(TopP(top_p))
    if min_p:
        rules.append(MinP(min_p))
    return tuple(rules)


def _allowed(vocabulary: Vocabulary, *, allow: str, forbid: str) -> np.ndarray:
    """[V] bool."""
    allowed = np.ones(vocabulary.size, bool)
    if allow:
        allowed[:] = False
        try:
            allowed[vocabulary.encode(allow)] = True
        except UserError as error:
            raise UserError(f"allow has characters {error}") from error
    allowed[vocabulary.encode(forbid, unk="skip")] = False  # what is unknown is never written
    allowed[UNK_ID] = False
    if not allowed.any():
        raise UserError("allow and forbid leave no character to write: give others")
    return allowed
