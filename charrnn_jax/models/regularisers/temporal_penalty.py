"""Temporal activation regularisation: outputs that change slowly.

  penalty = weight * mean of (h_L[t + 1] - h_L[t])^2

over sequences, units and the T - 1 pairs of steps in a batch; h_L is the output of the last layer,
before dropout. With T = 1 there is no pair, and the penalty is 0.

Source: Merity et al. 2017 (arXiv:1708.01009), section 3, with the mean of their code,
https://github.com/salesforce/awd-lstm-lm.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from charrnn_jax.models.regularisers.regulariser import Activations, Regulariser


@struct.dataclass
class TemporalPenalty(Regulariser):
    """The penalty with a weight.

    Attributes:
      weight: factor of the penalty.
    """

    weight: float | jax.Array

    def penalty(self, activations: Activations, *, params: Mapping[str, Any]) -> jax.Array:
        change = jnp.diff(activations.outputs[-1], axis=1)
        return self.weight * (jnp.square(change).sum() / max(change.size, 1))
