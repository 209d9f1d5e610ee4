"""`tune`: chooses the numbers of dynamic evaluation on training text."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.dynamic import Dynamic
from charrnn_jax.evaluation.protocols import char_losses
from charrnn_jax.models.char_rnn import CharRNN, Params

_SCORED_CHARS = 20_000  # at the end of the training text
_TUNED = {"rate": 2.0, "decay": 2.0, "epsilon": 10.0}  # field -> factor between the values tried
_MOST_STEPS = 6  # by the factor, each time that a number is looked at


def tune(
    protocol: Dynamic,
    params: Params,
    tokens: np.ndarray,
    *,
    model: CharRNN,
    report: Callable[[Dynamic, float], object] = lambda protocol, loss: None,
) -> Dynamic:
    """Chooses rate, decay and epsilon on the end of the training text.

    Each number is multiplied or divided by a factor (2, for epsilon 10) as long as the loss falls,
    the others staying as they are; then all are looked at once more.

    Args:
      protocol: where to start.
      params: parameters of the model, as returned by `initialize_params`.
      tokens: [n] ids of the training text. The last 20,000 (at most half) are scored, and the
        gradients are measured on what is before them.
      model: the model.
      report: called with each protocol that was tried, and its loss in nats/char.

    Raises:
      UserError: the text is too short.
    """
    num_scored = min(_SCORED_CHARS, len(tokens) // 2)
    if num_scored < 2:
        raise UserError("the training text is too short to tune dynamic evaluation on it")
    slice_of_train = tokens[-num_scored - 1 :]
    known: dict[Dynamic, float] = {}

    def loss_of(candidate: Dynamic) -> float:
        if candidate not in known:
            losses = char_losses(params, slice_of_train, model=model, protocol=candidate)
            loss = float(losses.mean(dtype=np.float64))
            known[candidate] = loss if np.isfinite(loss) else np.inf
            report(candidate, loss)
        return known[candidate]

    best = protocol.fit(params, tokens[: len(tokens) - num_scored], model=model)
    for _ in range(2):
        for name, factor in _TUNED.items():
            best = _climb(best, name, factor, loss_of)
    return best


def _climb(best: Dynamic, name: str, factor: float, loss_of: Callable[[Dynamic], float]) -> Dynamic:
    """Returns the best protocol in one direction of a number: larger, or else smaller."""
    for times in (factor, 1 / factor):
        start = best
        for _ in range(_MOST_STEPS):
            candidate = replace(best, **{name: getattr(best, name) * times})
            if loss_of(candidate) >= loss_of(best):
                break
            best = candidate
        if best is not start:
            break
    return best
