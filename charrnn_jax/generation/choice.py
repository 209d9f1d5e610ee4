"""`make_rules`: turns settings such as a temperature into the rules of drawing."""

from collections.abc import Iterable, Sequence
from typing import TypedDict

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


class Choice(TypedDict, total=False):
    """Keyword arguments of `make_rules`, for type checkers."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    no_repeat: int
    allow: str
    forbid: str
    pattern: str
    own: Sequence[str]


def check_keywords(given: Iterable[str], *, known: type, function: str) -> None:
    """Raises TypeError for keywords that a TypedDict lacks, as if `function` had been called."""
    if unknown := sorted(set(given) - known.__annotations__.keys()):
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")


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
    """Makes the rules for some settings, in the order in which they have to be applied.

    `[UNK]` is never drawn, except by `pattern`, where it stands for the end of the text.

    Args:
      vocabulary: vocabulary of the model.
      temperature: what the logits are divided by, from 1e-6 to 1e6; 1: the model's own
        distribution; 0: greedy, always the most likely token.
      top_k: number of most likely tokens that can be drawn; 0: all.
      top_p: total probability, after the temperature, of the most likely tokens that can be drawn;
        1: all.
      min_p: lowest probability, after the temperature, of a token that can be drawn, as a fraction
        of the highest; 0: all.
      no_repeat: length in characters of the stretches that are not written twice; 0: no such rule.
      allow: characters that can be drawn; "": all.
      forbid: characters that cannot be drawn.
      pattern: regular expression that the text after the prompt has to match; "": any text.
      own: names of registered rules, which are applied before the temperature.

    Raises:
      UserError: a number is out of range, the model does not know a character, or the pattern
        cannot be used.
    """
    _check_ranges(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, no_repeat=no_repeat
    )
    allowed = _allowed(vocabulary, allow=allow, forbid=forbid)
    rules: list[Rule] = [Allow(jnp.asarray(allowed))]
    if pattern:
        # The pattern itself permits only allowed characters. The others are kept here, since
        # their probability goes to the end of the text.
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
        "top_k": (top_k, top_k in range(2**31), "a whole number from 0 to 2147483647"),
        "top_p": (top_p, 1e-6 <= top_p <= 1, "from 1e-6 to 1"),
        "min_p": (min_p, 0 <= min_p <= 1, "from 0 to 1"),
        "no_repeat": (no_repeat, no_repeat in range(WINDOW + 1), f"from 0 to {WINDOW}"),
    }
    for name, (value, is_in_range, requirement) in ranges.items():
        if not is_in_range:
            raise UserError(f"{name} is {value}; it must be {requirement}")


def _allowed(vocabulary: Vocabulary, *, allow: str, forbid: str) -> np.ndarray:
    """Returns whether each token can be drawn, [V] bool."""
    allowed = np.ones(vocabulary.size, bool)
    if allow:
        allowed[:] = False
        try:
            allowed[vocabulary.encode(allow)] = True
        except UserError as error:
            raise UserError(f"allow has characters {error}") from error
    allowed[vocabulary.encode(forbid, unk="skip")] = False  # unknown ones are never drawn
    allowed[UNK_ID] = False
    if not allowed.any():
        raise UserError("allow and forbid leave no character to write: allow more, or forbid fewer")
    return allowed
