"""Methods of regularisation that act in a training step, one in each file.

Dropout, embedding dropout, weight dropout and zoneout are part of `CharRNN`, since their rates are
fields of the model. Here are those that add a penalty to the loss, and `Regulariser`, which your
own may be.
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.errors import UserError
from charrnn_jax.models.regularisers.activation_penalty import ActivationPenalty
from charrnn_jax.models.regularisers.regulariser import Activations as Activations
from charrnn_jax.models.regularisers.regulariser import Regulariser
from charrnn_jax.models.regularisers.temporal_penalty import TemporalPenalty
from charrnn_jax.registry import REGULARISERS

Regularisers = tuple[Regulariser, ...]
# By the field of `config.train` with their weight.
_PENALTIES: dict[str, Any] = {
    "activation_penalty": ActivationPenalty,
    "temporal_penalty": TemporalPenalty,
}


def make_regularisers(config: ConfigDict) -> Regularisers:
    """Makes the penalties of a config whose weight is not zero, and the registered regularisers.

    Raises:
      UserError: a registered one is no `Regulariser`, or cannot be compiled into a program.
    """
    penalties = [
        make(config.train[name]) for name, make in _PENALTIES.items() if config.train[name]
    ]
    names = REGULARISERS.names_in(config.train.regularisers)
    own = [REGULARISERS[name](config) for name in names]
    for name, regulariser in zip(names, own, strict=True):
        if not isinstance(regulariser, Regulariser):
            raise UserError(
                f"the regulariser {name!r} is {regulariser!r}: what is registered must return an "
                "instance of a subclass of charrnn_jax.Regulariser"
            )
        leaves = jax.tree.leaves(regulariser)
        if not all(isinstance(leaf, int | float | jax.Array | np.ndarray) for leaf in leaves):
            raise UserError(
                f"the regulariser {name!r} cannot be compiled into a program: decorate its class "
                "with flax.struct.dataclass, and let its fields be numbers or arrays"
            )
    return (*penalties, *own)
