"""`CharRNN`: embedding -> stacked recurrent layers -> dense."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.dropout import Dropout, drops
from charrnn_jax.models.products import product
from charrnn_jax.models.recurrence import Recurrence, choose_form

Carry = tuple[Any, ...]  # one entry per layer
Params = Mapping[str, Any]  # parameters of a model: nested dictionaries of arrays
Ids = Sequence[int] | np.ndarray


class CharRNN(nn.Module):
    """A character-level language model.

    logits[t] = Dense(h_L[t]), h_l = Recurrence_l(h_(l-1)), h_0[t] = Embedding[tokens[t]]

    Attributes:
      vocabulary_size: V, including `[UNK]`.
      embedding_size: E, units of the embedding.
      hidden_size: H, units of each recurrent layer.
      num_layers: L, number of recurrent layers.
      cell: name of the cell in `cells.CELLS`.
      input_dropout: dropout rate on the embedding of every character.
      dropout: dropout rate on the output of every recurrent layer.
      dropout_noise: "step": drawn at every time step; "locked": drawn once per sequence and unit,
        for all time steps (Gal & Ghahramani 2016, arXiv:1512.05287).
      zoneout: rate at which units of the carry keep their values, see `zoneout`.
      implementation: form of the recurrence, see `recurrence`.
      dtype: type of the operands of products, "float32" or "bfloat16"; parameters, sums, carry and
        everything elementwise are float32.
      init_scale: factor of all matrices at initialisation.
    """

    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    cell: str = "gru"
    input_dropout: float = 0.0
    dropout: float = 0.0
    dropout_noise: str = "step"
    zoneout: float = 0.0
    implementation: str = "auto"
    dtype: str = "float32"
    init_scale: float = 1.0

    def setup(self) -> None:
        self.embedding = nn.Embed(self.vocabulary_size, self.embedding_size)
        self.layers = [
            Recurrence(self.cell, self.hidden_size, self.implementation, self.dtype, self.zoneout)
            for _ in range(self.num_layers)
        ]
        shared_axes = (1,) if self.dropout_noise == "locked" else ()
        self.input_dropout_layer = Dropout(self.input_dropout, shared_axes)
        self.dropout_layer = Dropout(self.dropout, shared_axes)
        self.dense = nn.Dense(self.vocabulary_size, dot_general=self._dense_product)

    def _dense_product(self, x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return product(x, kernel, dtype=self.dtype)

    def __call__(
        self, carry: Carry, tokens: jax.Array, *, deterministic: bool = True
    ) -> tuple[Carry, jax.Array]:
        """Predicts the character after each token.

        Args:
          carry: carry before the first token, from `initialize_carry` or from the call on the text
            before.
          tokens: [B, T] ids, for any B and T.
          deterministic: whether dropout is off, and zoneout its expectation; if not, an rng named
            "dropout" is needed.

        Returns:
          (carry after the last token, logits [B, T, V] for the token after each).
        """
        new_carry, outputs = self.run_layers(carry, tokens, deterministic=deterministic)
        # Time first, as the recurrence computes it; otherwise XLA would copy [B, T, H] in memory.
        logits = self.dense(outputs[-1].swapaxes(0, 1)).swapaxes(0, 1)  # [B, T, V]
        return new_carry, logits

    def run_layers(
        self, carry: Carry, tokens: jax.Array, *, deterministic: bool = True
    ) -> tuple[Carry, list[jax.Array]]:
        """Runs all layers except the dense one; arguments as in `__call__`.

        Returns:
          (carry after the last token, the output [B, T, H] of every recurrent layer).
        """
        new_carry: list[Any] = []
        outputs: list[jax.Array] = []
        for layer, layer_carry in zip(self.layers, carry, strict=True):
            if outputs:
                layer_carry, x = layer(layer_carry, outputs[-1], deterministic=deterministic)
            elif drops(self.input_dropout):
                embedded = self.embedding(tokens)
                x = self.input_dropout_layer(embedded, deterministic=deterministic)
                layer_carry, x = layer(layer_carry, x, deterministic=deterministic)
            else:
                table = self.embedding.embedding
                layer_carry, x = layer.on_tokens(
                    layer_carry, tokens, table=table, deterministic=deterministic
                )
            if drops(self.dropout):
                x = self.dropout_layer(x, deterministic=deterministic)
            new_carry.append(layer_carry)
            outputs.append(x)
        return tuple(new_carry), outputs

    def initialize_carry(self, batch_size: int) -> Carry:
        """Returns the carry before the first character, for B sequences."""
        cell = CELLS[self.cell]
        return tuple(
            cell.initialize_carry(batch_size, self.hidden_size) for _ in range(self.num_layers)
        )


def make_model(config: ConfigDict, *, vocabulary_size: int) -> CharRNN:
    """Builds the model that a config describes.

    Args:
      config: the `config.model` section.
      vocabulary_size: V, including `[UNK]`.

    Raises:
      UserError: the cell is not registered, or does not support the implementation or dtype.
    """
    check_model(config)
    return CharRNN(vocabulary_size=vocabulary_size, **config.to_dict())


def check_model(config: ConfigDict) -> None:
    """Raises UserError if a `config.model` section has an unknown cell, or a form that it lacks."""
    choose_form(
        CELLS[config.cell],
        implementation=config.implementation,
        dtype=config.dtype,
        zoneout=config.zoneout,
    )


def initialize_params(model: CharRNN, key: jax.Array) -> Params:
    """Draws the initial parameters of a model.

    These are Flax's defaults: embedding N(0, 1/E), input kernels LeCun normal, recurrent kernels
    orthogonal, biases zero. Matrices are then multiplied by `model.init_scale`.

    Args:
      model: the model.
      key: random key.

    Returns:
      Parameters as nested dictionaries of arrays.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = model.init(key, model.initialize_carry(1), tokens)["params"]
    if model.init_scale == 1.0:
        return params
    return jax.tree.map(lambda p: p * model.init_scale if p.ndim > 1 else p, params)


def change_vocabulary(params: Params, *, tokens: Ids, new: Params, new_tokens: Ids) -> Params:
    """Returns the parameters of the same model for another vocabulary.

    Args:
      params: parameters of the model with the old vocabulary.
      tokens: [n] ids, in the old vocabulary, of the tokens that both have. Their embedding rows,
        dense columns and dense biases are kept bit for bit.
      new: initial parameters of the model with the new vocabulary, which all other tokens keep; the
        recurrent layers are not used.
      new_tokens: [n] ids of the same tokens in the new vocabulary.
    """
    embedding, dense = jax.device_get((new["embedding"]["embedding"], new["dense"]))
    embedding, kernel, bias = map(np.array, (embedding, dense["kernel"], dense["bias"]))
    embedding[new_tokens] = params["embedding"]["embedding"][tokens]
    kernel[:, new_tokens] = params["dense"]["kernel"][:, tokens]
    bias[new_tokens] = params["dense"]["bias"][tokens]
    ends = {"embedding": {"embedding": embedding}, "dense": {"kernel": kernel, "bias": bias}}
    return {**params, **ends}


def forward(
    params: Params,
    carry: Carry,
    tokens: ArrayLike,
    *,
    model: CharRNN,
    dropout_key: jax.Array | None = None,
) -> tuple[Carry, jax.Array]:
    """Applies the model to tokens; see `CharRNN.__call__`.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      carry: carry before the first token, for B sequences.
      tokens: [B, T] ids.
      model: the model.
      dropout_key: random key for dropout and zoneout; None: no dropout, and the expectation of
        zoneout.

    Returns:
      (carry after the last token, logits [B, T, V] for the token after each).
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    result: Any = model.apply(
        {"params": params}, carry, tokens, deterministic=dropout_key is None, rngs=rngs
    )
    return result


@partial(jax.jit, static_argnames="model")
def activations(params: Params, carry: Carry, tokens: ArrayLike, *, model: CharRNN) -> jax.Array:
    """Returns the output of every unit after every character, without dropout.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      carry: carry before the first token, for B sequences.
      tokens: [B, T] ids.
      model: the model.

    Returns:
      [B, T, L, H] outputs of the recurrent layers.
    """
    outputs: Any
    _, outputs = model.apply({"params": params}, carry, tokens, method="run_layers")
    return jnp.stack(outputs, axis=2)


def summary(model: CharRNN) -> str:
    """Returns a table of layers and parameter counts, and the form of the recurrence."""
    params = jax.eval_shape(partial(initialize_params, model), jax.random.key(0))
    layers = [
        (f"layers_{i}", f" ({model.cell})", model.hidden_size) for i in range(model.num_layers)
    ]
    ends = ("embedding", "", model.embedding_size), ("dense", "", model.vocabulary_size)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    total = sum(counts.values())
    rows = [
        (name + cell, f"[B, T, {size}]", f"{counts[name]:,}", f"{counts[name] / total:.1%}")
        for name, cell, size in (ends[0], *layers, ends[1])
    ]
    table = [
        ("layer", "output shape", "parameters", "share"),
        *rows,
        ("total", "", f"{total:,}", ""),
    ]
    lines = (f"{a:20}{b:16}{c:>14}{d:>8}".rstrip() for a, b, c, d in table)
    form = choose_form(
        CELLS[model.cell],
        implementation=model.implementation,
        dtype=model.dtype,
        zoneout=model.zoneout,
    )
    auto = " (auto)" if model.implementation == "auto" else ""
    return "\n".join([*lines, f"Recurrence: {form}{auto}, products of {model.dtype}\n"])
