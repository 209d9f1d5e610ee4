"""`CharRNN`: embedding -> stacked recurrent layers -> dense."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.dropout import Dropout, drops
from charrnn_jax.models.ends import Dense, Embedding
from charrnn_jax.models.recurrence import Recurrence, choose_form
from charrnn_jax.models.regularisers import Activations, Regularisers
from charrnn_jax.models.weight_dropout import drop_weights

Carry = tuple[Any, ...]  # one entry per layer
Params = Mapping[str, Any]  # parameters of a model: nested dictionaries of arrays
Ids = Sequence[int] | np.ndarray
Transform = Callable[[jax.Array, int], jax.Array]  # (output [B, T, H], layer) -> output


class CharRNN(nn.Module):
    """A character-level language model.

    logits[t] = Dense(h_L[t]), h_l = Recurrence_l(h_(l-1)), h_0[t] = Embedding[tokens[t]]

    Attributes:
      vocabulary_size: V, including `[UNK]`.
      embedding_size: E, units of the embedding.
      hidden_size: H, units of each recurrent layer.
      num_layers: L, number of recurrent layers.
      cell: name of the cell in `cells.CELLS`.
      residual: "none"; "add": from the second layer on, a layer's output is the sum of what it
        reads and what its cell gives, h_l = Recurrence_l(h_(l-1)) + h_(l-1) (He et al. 2016,
        arXiv:1512.03385; Wu et al. 2016, arXiv:1609.08144). Dropout acts on what the cell gives.
      readout: "last": the dense layer reads h_L; "all": it reads [h_1, ..., h_L] side by side
        (Graves 2013, arXiv:1308.0850; Hermans & Schrauwen 2013).
      output_embedding: "own": the dense layer has a kernel; "tied": it shares the embedding, see
        `ends`.
      embedding_rank: r, if the embedding is a product [V, r] [r, E]; 0: it is not.
      embedding_dropout: dropout rate on whole characters, drawn once a training step: rows of the
        embedding table (Gal & Ghahramani 2016).
      input_dropout: dropout rate on the embedding of every character.
      dropout: dropout rate on the output of every recurrent layer.
      output_dropout: the same rate for the last layer alone; -1: as `dropout`.
      dropout_noise: "step": drawn at every time step; "locked": drawn once per sequence and unit,
        for all time steps (Gal & Ghahramani 2016, arXiv:1512.05287).
      weight_dropout: dropout rate on the recurrent kernels, see `weight_dropout`. `forward` drops
        them; the module itself does not know of it.
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
    residual: str = "none"
    readout: str = "last"
    output_embedding: str = "own"
    embedding_rank: int = 0
    embedding_dropout: float = 0.0
    input_dropout: float = 0.0
    dropout: float = 0.0
    output_dropout: float = -1.0
    dropout_noise: str = "step"
    weight_dropout: float = 0.0
    zoneout: float = 0.0
    implementation: str = "auto"
    dtype: str = "float32"
    init_scale: float = 1.0

    def setup(self) -> None:
        self.embedding = Embedding(
            self.vocabulary_size, self.embedding_size, self.embedding_rank, self.dtype
        )
        self.layers = [
            Recurrence(self.cell, self.hidden_size, self.implementation, self.dtype, self.zoneout)
            for _ in range(self.num_layers)
        ]
        shared_axes = (1,) if self.dropout_noise == "locked" else ()
        self.embedding_dropout_layer = Dropout(self.embedding_dropout, shared_axes=(1,))
        self.input_dropout_layer = Dropout(self.input_dropout, shared_axes)
        self.dropout_layer = Dropout(self.dropout, shared_axes)
        self.output_dropout_layer = Dropout(self.output_dropout, shared_axes)
        is_tied = self.output_embedding == "tied"
        self.dense = Dense(self.vocabulary_size, is_tied, self.dtype)

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
        new_carry, activations = self.run(carry, tokens, deterministic=deterministic)
        return new_carry, activations.logits

    def run(
        self,
        carry: Carry,
        tokens: jax.Array,
        *,
        deterministic: bool = True,
        transform: Transform = lambda output, layer: output,
    ) -> tuple[Carry, Activations]:
        """Returns (carry after the last token, everything computed on the way).

        Args:
          carry: as in `__call__`.
          tokens: as in `__call__`.
          deterministic: as in `__call__`.
          transform: function of the output [B, T, H] of a layer, after dropout, and its index.
        """
        table = self.embedding()  # [V, E]
        new_carry: list[Any] = []
        outputs: list[jax.Array] = []
        dropped: list[jax.Array] = []
        for index, (layer, layer_carry) in enumerate(zip(self.layers, carry, strict=True)):
            if dropped:
                layer_carry, x = layer(layer_carry, dropped[-1], deterministic=deterministic)
            else:
                layer_carry, x = self._read(
                    layer_carry, tokens, table=table, deterministic=deterministic
                )
            kept = transform(self._drop(x, layer=index, deterministic=deterministic), index)
            if dropped and self.residual == "add":
                x, kept = x + dropped[-1], kept + dropped[-1]
            new_carry.append(layer_carry)
            outputs.append(x)
            dropped.append(kept)
        logits = self._predict(dropped, table=table)
        return tuple(new_carry), Activations(tuple(outputs), tuple(dropped), logits)

    def _read(
        self, carry: Any, tokens: jax.Array, *, table: jax.Array, deterministic: bool
    ) -> tuple[Any, jax.Array]:
        """Runs the first layer over the embeddings of tokens."""
        layer = self.layers[0]
        if drops(self.embedding_dropout):
            table = self.embedding_dropout_layer(table, deterministic=deterministic)
        if drops(self.input_dropout):
            x = self.input_dropout_layer(table[tokens], deterministic=deterministic)
            return layer(carry, x, deterministic=deterministic)
        return layer.on_tokens(carry, tokens, table=table, deterministic=deterministic)

    def _drop(self, x: jax.Array, *, layer: int, deterministic: bool) -> jax.Array:
        is_last = layer == self.num_layers - 1
        if is_last and (isinstance(self.output_dropout, jax.Array) or self.output_dropout >= 0):
            rate, dropout_layer = self.output_dropout, self.output_dropout_layer
        else:
            rate, dropout_layer = self.dropout, self.dropout_layer
        return dropout_layer(x, deterministic=deterministic) if drops(rate) else x

    def _predict(self, outputs: Sequence[jax.Array], *, table: jax.Array) -> jax.Array:
        """Returns the logits [B, T, V] of the outputs [B, T, H] of all layers."""
        # Time first, as the recurrence computes it; otherwise XLA would copy [B, T, H] in memory.
        read = [x.swapaxes(0, 1) for x in (outputs if self.readout == "all" else outputs[-1:])]
        x = jnp.concatenate(read, axis=-1) if len(read) > 1 else read[0]
        return self.dense(x, table=table).swapaxes(0, 1)

    @property
    def readout_size(self) -> int:
        """Number of units that the dense layer reads."""
        return self.hidden_size * (self.num_layers if self.readout == "all" else 1)

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
      UserError: see `check_model`.
    """
    check_model(config)
    return CharRNN(vocabulary_size=vocabulary_size, **config.to_dict())


def check_model(config: ConfigDict) -> None:
    """Checks a `config.model` section.

    Raises:
      UserError: the cell is not registered, or it lacks the form, the dtype, zoneout or weights to
        drop.
    """
    cell = CELLS[config.cell]
    if config.weight_dropout and not cell.recurrent:
        raise UserError(
            f"config.model.weight_dropout is {config.weight_dropout}, but the cell {cell.name!r} "
            "has no recurrent kernels to drop weights of: set it to 0"
        )
    choose_form(
        cell,
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
    embedding, dense = dict(params["embedding"]), dict(params["dense"])
    embedding["embedding"] = np.array(jax.device_get(new["embedding"]["embedding"]))
    embedding["embedding"][new_tokens] = params["embedding"]["embedding"][tokens]
    for name in ("kernel", "bias"):
        if name in dense:  # a layer that is tied to the embedding has no kernel
            dense[name] = np.array(jax.device_get(new["dense"][name]))
            dense[name][..., new_tokens] = params["dense"][name][..., tokens]
    return {**params, "embedding": embedding, "dense": dense}


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
      dropout_key: random key for dropout of all kinds and zoneout; None: no dropout, and the
        expectation of zoneout.

    Returns:
      (carry after the last token, logits [B, T, V] for the token after each).
    """
    if dropout_key is None:
        result: Any = model.apply({"params": params}, carry, tokens)
        return result
    new_carry, computed = forward_in_training(params, carry, tokens, model=model, key=dropout_key)
    return new_carry, computed.logits


def forward_in_training(
    params: Params,
    carry: Carry,
    tokens: ArrayLike,
    *,
    model: CharRNN,
    key: jax.Array,
    regularisers: Regularisers = (),
) -> tuple[Carry, Activations]:
    """Applies the model to tokens with dropout of all kinds, and with regularisers.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      carry: carry before the first token, for B sequences.
      tokens: [B, T] ids.
      model: the model.
      key: random key of the step.
      regularisers: regularisers whose transformations are applied, in their order.

    Returns:
      (carry after the last token, everything computed on the way).
    """
    weights_key, *keys = (jax.random.fold_in(key, i) for i in range(1 + len(regularisers)))
    if drops(model.weight_dropout):
        cell = CELLS[model.cell]
        params = drop_weights(params, cell=cell, rate=model.weight_dropout, key=weights_key)
    for regulariser, own_key in zip(regularisers, keys, strict=True):
        params = regulariser.transform_params(params, key=own_key)

    def transform(output: jax.Array, layer: int) -> jax.Array:
        for regulariser, own_key in zip(regularisers, keys, strict=True):
            layer_key = jax.random.fold_in(own_key, layer)
            output = regulariser.transform_output(output, layer=layer, key=layer_key)
        return output

    result: Any = model.apply(
        {"params": params},
        carry,
        tokens,
        deterministic=False,
        transform=transform,
        rngs={"dropout": key},
        method="run",
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
    computed: Any
    _, computed = model.apply({"params": params}, carry, tokens, method="run")
    return jnp.stack(computed.outputs, axis=2)


def layers_of(model: CharRNN) -> list[tuple[str, str, int]]:
    """Returns the name, the shape of the output and the number of parameters of each layer."""
    params = jax.eval_shape(partial(initialize_params, model), jax.random.key(0))
    layers = [
        (f"layers_{i}", f" ({model.cell})", model.hidden_size) for i in range(model.num_layers)
    ]
    ends = ("embedding", "", model.embedding_size), ("dense", "", model.vocabulary_size)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    return [
        (name + cell, f"[B, T, {size}]", counts[name])
        for name, cell, size in (ends[0], *layers, ends[1])
    ]


def summary(model: CharRNN) -> str:
    """Returns a table of layers and parameter counts, and the form of the recurrence."""
    layers = layers_of(model)
    total = sum(num_params for _, _, num_params in layers)
    table = [
        ("layer", "output shape", "parameters", "share"),
        *((name, shape, f"{num:,}", f"{num / total:.1%}") for name, shape, num in layers),
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
