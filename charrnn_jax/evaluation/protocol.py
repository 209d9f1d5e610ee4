"""`Protocol`: what an evaluation protocol has to have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.models.char_rnn import CharRNN, Params


@dataclass(frozen=True)
class Protocol:
    """Base class of protocols.

    Attributes:
      name: name of the protocol in a config.
      in_all: whether `charrnn evaluate --protocol=all` includes the protocol; False for an
        expensive one, which must then be named.
    """

    name: ClassVar[str]
    in_all: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Protocol":
        """Makes the protocol with the settings of a `config.evaluation` section."""
        return cls()

    @property
    def label(self) -> str:
        """Name that losses are reported under; it tells settings apart that change the losses."""
        return self.name

    @property
    def description(self) -> str:
        """What the protocol does with a split, in words."""
        raise NotImplementedError

    def fit(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> "Protocol":
        """Returns the protocol after it has read the training text; most do not need it.

        Args:
          params: parameters of the model, as returned by `initialize_params`.
          tokens: [n] ids of the training text.
          model: the model.
        """
        return self

    def losses(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        """Yields -log p(tokens[i] | context) for i = 1, 2, ..., in order.

        Args:
          params: parameters of the model, as returned by `initialize_params`.
          tokens: [1 + n] ids, with n at least 1; the first is only context.
          model: the model.

        Yields:
          [k] losses in nats of the next k characters; n losses in all.
        """
        raise NotImplementedError
