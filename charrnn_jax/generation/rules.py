"""How the next token is chosen: rules, each of which turns logits into logits.

Rules are applied one after the other; what is left at the end is drawn from, by `choose`. A rule
is a frozen dataclass whose numbers are leaves of a pytree, so another temperature or another k runs
the same compiled program. Most rules look at the logits alone. One that looks at the text, too,
keeps what it needs of it in a memory, one entry a row, so no row's text depends on another's.

Top-k and top-p need no sorted logits, only the threshold: it is found bit by bit, by 32 sums over
all tokens, which on a CPU is ten times as fast as sorting.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

WINDOW = 512  # characters that `NoRepeat` looks back


@struct.dataclass
class Rule:
    """What all rules have in common; one that looks at the logits alone overrides `__call__`."""

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        """[B, V] -> [B, V]; -inf: the token cannot be drawn."""
        raise NotImplementedError

    def start(self, prompts: jax.Array, lengths: jax.Array) -> Any:
        """Returns the memory after prompts [B, P], of which `lengths` [B] tokens count."""
        return ()

    def update(self, memory: Any, tokens: jax.Array) -> Any:
        """Returns the memory after the next tokens [B]."""
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
        # recent[j + 1] came after the text that ends at j; at the end itself nothing came yet.
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
    """Returns the memory of every rule after the prompts."""
    return tuple(rule.start(prompts, lengths) for rule in rules)


def apply_rules(rules: Rules, logits: jax.Array, memory: tuple[Any, ...]) -> jax.Array:
    """Applies one rule behind the other. logits: [B, V]; returns [B, V]."""
    for rule, rule_memory in zip(rules, memory, strict=True):
        logits = rule(logits, rule_memory)
    return logits


def update_memory(rules: Rules, memory: tuple[Any, ...], tokens: jax.Array) -> tuple[Any, ...]:
    """Returns the memory of every rule after the next tokens [B]."""
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
