"""`CharRNN`: embedding -> stacked recurrent layers -> dense."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from charrnn_jax.models.recurrence import Recurrence

Carry = tuple[Any, ...]  # one entry a layer


class CharRNN(nn.Module):
    """A character-level language model.

    logits[t] = Dense(h_L[t]), h_l = Recurrence_l(h_(l-1)), h_0[t] = Embedding[tokens[t]]

    Attributes:
      vocabulary_size: V, `[UNK]` included.
      embedding_size: E.
      hidden_size: H, of every recurrent layer.
      num_layers: L.
      cell: name in `cells.CELLS`.
      dropout: rate on the output of every recurrent layer, drawn anew for every time step.
    """

    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    cell: str = "gru"
    dropout: float = 0.0

    def setup(self):
        self.embedding = nn.Embed(self.vocabulary_size, self.embedding_size)
        self.layers = [Recurrence(self.cell, self.hidden_size) for _ in range(self.num_layers)]
        self.dropout_layer = nn.Dropout(self.dropout)
        self.dense = nn.Dense(self.vocabulary_size)

    def __call__(
        self, carry: Carry, tokens: jax.Array, *, deterministic: bool = True
    ) -> tuple[Carry, jax.Array]:
        """Predicts every next character.

        Args:
          carry: from `initialize_carry` or from the call on the text before.
          tokens: [B, T] ids, any B and T.
          deterministic: no dropout. False needs an rng named "dropout".

        Returns:
          (carry behind the last token, logits [B, T, V] of the token behind each).
        """
        x = self.embedding(tokens)  # [B, T, E]
        new_carry = []
        for layer, layer_carry in zip(self.layers, carry, strict=True):
            layer_carry, x = layer(layer_carry, x)  # [B, T, H]
            if self.dropout:
                x = self.dropout_layer(x, deterministic=deterministic)
            new_carry.append(layer_carry)
        return tuple(new_carry), self.dense(x)  # [B, T, V]

    def initialize_carry(self, batch_size: int) -> Carry:
        """Returns the zero carry for B sequences."""
        layer = Recurrence(self.cell, self.hidden_size, parent=None)
        return tuple(layer.initialize_carry(batch_size) for _ in range(self.num_layers))


def make_model(config: ConfigDict, *, vocabulary_size: int) -> CharRNN:
    """Builds the model of a `config.model` section."""
    return CharRNN(vocabulary_size=vocabulary_size, **config.to_dict())


def initialize_params(model: CharRNN, key: jax.Array) -> Any:
    """Draws parameters (Flax's defaults: embedding N(0, 1/E), input kernels LeCun normal, recurrent
    kernels orthogonal, biases zero)."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, model.initialize_carry(1), tokens)["params"]


def forward(
    params: Any,
    carry: Carry,
    tokens: ArrayLike,
    *,
    model: CharRNN,
    dropout_key: jax.Array | None = None,
) -> tuple[Carry, jax.Array]:
    """Applies the model with given parameters; see `CharRNN.__call__`. No dropout without a key."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    result: Any = model.apply(
        {"params": params}, carry, tokens, deterministic=dropout_key is None, rngs=rngs
    )
    return result


def summary(model: CharRNN) -> str:
    """Returns the table of layers, shapes and parameter counts."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    carry = jax.eval_shape(lambda: model.initialize_carry(1))
    return nn.tabulate(
        model, jax.random.key(0), depth=1, console_kwargs={"width": 110, "force_terminal": False}
    )(carry, tokens)
