"""`record`: what every unit of a model does over a text."""

import jax
import numpy as np

from charrnn_jax.models.char_rnn import Carry, CharRNN, Params
from charrnn_jax.models.inside import inside

_SEGMENT = 512  # characters in one call; does not affect the result


def record(
    params: Params,
    tokens: np.ndarray,
    *,
    model: CharRNN,
    carry: Carry | None = None,
    with_values: bool = False,
) -> tuple[Carry, dict[str, np.ndarray]]:
    """Reads a text in one pass, in which the carry is kept, as the protocol `carried` does.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      tokens: [N] ids, N at least 1.
      model: the model.
      carry: carry before the first token; None: that at the start of a text.
      with_values: whether to return the carry and the gates, too.

    Returns:
      (carry after the last token, {name: [N, L, H]}). The names are "output" and, on request, those
      of the arrays of the carry, as in `Cell.carry`, and of the gates, as in `Cell.gate_names`.

    Raises:
      UserError: `Cell.gate_names` does not fit the step of the cell.
    """
    carry, parts = model.initialize_carry(1) if carry is None else carry, []
    for start in range(0, len(tokens), _SEGMENT):  # without padding, which would change the carry
        piece = jax.device_put(np.asarray(tokens[None, start : start + _SEGMENT], np.int32))
        carry, values = inside(params, carry, piece, model=model, with_values=with_values)
        parts.append({name: array[0] for name, array in jax.device_get(values).items()})
    return carry, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
