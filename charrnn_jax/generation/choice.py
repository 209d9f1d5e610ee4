"""Which rules text is drawn by: `make_rules`, from numbers and strings to `Rules`."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.pattern import compile_pattern
from charrnn_jax.generation.rules import (
    WINDOW,
    Allow,
    Greedy,
    MinP,
    NoRepeat,
    Rule,
    Rules,
    Temperature,
    TopK,
    TopP,
)
from charrnn_jax.registry import RULES


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
    _check_ranges(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, no_repeat=no_repeat
    )
    allowed = _allowed(vocabulary, allow=allow, forbid=forbid)
    rules: list[Rule] = [Allow(jnp.asarray(allowed))]
    if pattern:
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


def _check_ranges(
    *, temperature: float, top_k: int, top_p: float, min_p: float, no_repeat: int
) -> None:
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
