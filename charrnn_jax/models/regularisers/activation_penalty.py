"""Activation regularisation: small outputs.

  penalty = weight * mean of (m * h_L)^2

over sequences, time and units; h_L is the output of the last layer and m its dropout, scaled.

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
class ActivationPenalty(Regulariser):
    """The penalty with a weight.

    Attributes:
      weight: factor of the penalty.
    """

    weight: float | jax.Array

    def penalty(self, activations: Activations, *, params: Mapping[str, Any]) -> jax.Array:
        return self.weight * jnp.square(activations.dropped[-1]).mean()
