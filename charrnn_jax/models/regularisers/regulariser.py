"""`Regulariser`: what a method of regularisation may change in a training step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

from charrnn_jax.pytree import TypedDataclass


class Activations(NamedTuple):
    """What the forward pass of a training step computes.

    Attributes:
      outputs: output [B, T, H] of every recurrent layer, before dropout.
      dropped: the same as the layer above reads it: after dropout, and transformed.
      logits: [B, T, V] logits.
    """

    outputs: tuple[jax.Array, ...]
    dropped: tuple[jax.Array, ...]
    logits: jax.Array


@struct.dataclass
class Regulariser(TypedDataclass):
    """A method of regularisation. Each of its methods changes nothing unless it is overridden.

    Nothing of it acts outside of training. Its random numbers may depend on nothing but the key,
    which is another one at every step. A subclass is a `flax.struct.dataclass`, whose fields are
    numbers or arrays; they are arguments of the compiled training step.
    """

    def transform_params(self, params: Mapping[str, Any], *, key: jax.Array) -> Mapping[str, Any]:
        """Returns the parameters that the forward pass reads, a tree like `params`.

        The gradient is that of `params`.

        Args:
          params: parameters of the model.
          key: random key.
        """
        return params

    def transform_output(self, output: jax.Array, *, layer: int, key: jax.Array) -> jax.Array:
        """Returns what is read instead of the output of a recurrent layer.

        Args:
          output: [B, T, H] output of the layer, after dropout.
          layer: index of the layer, from 0.
          key: random key.
        """
        return output

    def penalty(self, activations: Activations, *, params: Mapping[str, Any]) -> float | jax.Array:
        """Returns a number that is minimised in addition to the mean loss, and not reported.

        Args:
          activations: what the forward pass computed.
          params: parameters of the model, as they are trained.
        """
        return 0.0
