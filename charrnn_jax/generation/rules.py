"""Rules for choosing the next token; each of them maps logits to logits.

Rules are applied in order, and `choose` draws from the result. A rule is a frozen dataclass whose
numbers are leaves of a pytree, so another temperature or another k runs the same compiled program.
Most rules depend only on the logits. A rule that also depends on the text keeps what it needs in a
memory, with one entry for each row, so that rows do not affect each other.

Top-k and top-p need only a threshold, not sorted logits. The threshold is found bit by bit, with 32
sums over all tokens, which on a CPU is ten times as fast as sorting.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from charrnn_jax.pytree import TypedDataclass

WINDOW = 512  # characters that `NoRepeat` looks back


@struct.dataclass
class Rule(TypedDataclass):
    """Base class of rules; a rule that depends only on the logits overrides just `__call__`."""

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        """Maps logits [B, V] to logits [B, V]; a token with -inf cannot be drawn."""
        raise NotImplementedError

    def start(self, prompts: jax.Array, lengths: jax.Array) -> Any:
        """Returns the memory after prompts [B, P], of which the first `lengths` [B] ids count."""
        return ()

    def update(self, memory: Any, tokens: jax.Array) -> Any:
        """Returns the memory after the next tokens [B]."""
        return memory


@struct.dataclass
class Allow(Rule):
    """Only some tokens can be drawn.

    Attributes:
      allowed: [V] bool, whether each token can be drawn.
    """

    allowed: jax.Array

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        return jnp.where(self.allowed[None], logits, -jnp.inf)


@struct.dataclass
class Greedy(Rule):
    """Only the most likely token can be drawn; of several equally likely ones, the first."""

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1])[None] == best, 0.0, -jnp.inf)


@struct.dataclass
class Temperature(Rule):
    """Divides the logits by a temperature above 0; below 1, likely tokens become likelier."""

    temperature: jax.Array | float

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        return logits / self.temperature


@struct.dataclass
class TopK(Rule):
    """Only the k most likely tokens, and any that are as likely as the last of them, can be drawn.

    Source: Fan et al. 2018 (arXiv:1805.04833).
    """

    k: jax.Array | int

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        logits = jnp.where(logits == 0, 0.0, logits)  # -0.0 has other bits than 0.0
        bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
        # Integers in the order of the floats; without this, negative floats would be in reverse.
        keys = jnp.where(bits < 0, ~bits, bits | jnp.int32(-(2**31))).astype(jnp.uint32)
        return _keep_most(logits, keys, weights=jnp.ones_like(logits), at_least=self.k)


@struct.dataclass
class TopP(Rule):
    """Only the fewest most likely tokens with a total probability of at least p can be drawn.

    Tokens that are as likely as the last of them can be drawn, too.

    Source: nucleus sampling, Holtzman et al. 2020 (arXiv:1904.09751).
    """

    p: jax.Array | float

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        probabilities = jax.nn.softmax(logits)
        keys = jax.lax.bitcast_convert_type(probabilities, jnp.uint32)  # in the order of the floats
        return _keep_most(logits, keys, weights=probabilities, at_least=self.p)


@struct.dataclass
class MinP(Rule):
    """Only tokens that are at least p times as likely as the most likely one can be drawn.

    Source: Nguyen et al. 2024 (arXiv:2407.01082).
    """

    p: jax.Array | float

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        least = logits.max(-1, keepdims=True) + jnp.log(self.p)
        return jnp.where(logits >= least, logits, -jnp.inf)


@struct.dataclass
class NoRepeat(Rule):
    """No stretch of `length` characters is written twice, which breaks loops.

    The prompt counts as written. Where nothing else can be drawn, the rule does not apply.

    Attributes:
      length: length of the stretches in characters, at least 1.
      window: number of characters of the text that the rule looks back; static.

    The memory is (recent [B, W], shared [B, W]). `recent` has the last tokens, with -1 before the
    start of the text. `shared` is, for the text up to each of these tokens, the number of
    characters at its end that are also at the end of the whole text.

    Source: n-gram blocking, Paulus et al. 2017 (arXiv:1705.04304).
    """

    length: jax.Array | int
    window: int = struct.field(pytree_node=False, default=WINDOW)

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        recent, shared = memory
        # recent[j + 1] follows the text up to j; nothing follows the last token yet.
        repeats = (shared[:, :-1] >= self.length - 1) & (recent[:, 1:] >= 0)
        followers = jnp.where(repeats, recent[:, 1:], logits.shape[-1])  # V is dropped
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
        # The text before position j ended at j until now, so `shared` needs no shift. Counts stop
        # at the window, so that reading the text again gives the same memory.
        longer = jnp.minimum(shared + 1, jnp.arange(1, self.window + 1)[None])
        return recent, jnp.where(recent == tokens[:, None], longer, 0)


def _keep_most(
    logits: jax.Array, keys: jax.Array, *, weights: jax.Array, at_least: jax.Array | float
) -> jax.Array:
    """Keeps the fewest tokens with the highest keys whose total weight is at least `at_least`.

    Tokens with the same key as the last of them are kept, too. If the weights of all tokens add up
    to less, all are kept.

    Args:
      logits: [B, V] logits.
      keys: [B, V] uint32, by which tokens are ordered.
      weights: [B, V] weights of the tokens.
      at_least: the total weight.
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
    """Returns the memory of every rule after the prompts; see `Rule.start`."""
    return tuple(rule.start(prompts, lengths) for rule in rules)


def apply_rules(rules: Rules, logits: jax.Array, memory: tuple[Any, ...]) -> jax.Array:
    """Applies the rules in order to logits [B, V]; returns logits [B, V]."""
    for rule, rule_memory in zip(rules, memory, strict=True):
        logits = rule(logits, rule_memory)
    return logits


def update_memory(rules: Rules, memory: tuple[Any, ...], tokens: jax.Array) -> tuple[Any, ...]:
    """Returns the memory of every rule after the next tokens [B]."""
    return tuple(
        rule.update(rule_memory, tokens) for rule, rule_memory in zip(rules, memory, strict=True)
    )


def choose(logits: jax.Array, *, noise: jax.Array) -> jax.Array:
    """Draws token ~ softmax(logits) for each row, as argmax(logits + g).

    Args:
      logits: [B, V] logits, after all rules.
      noise: [B, V] noise g, drawn with `jax.random.gumbel`.

    Returns:
      [B] int32 tokens.

    Source: Gumbel 1954; Maddison et al. 2014 (arXiv:1411.0030).
    """
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)
