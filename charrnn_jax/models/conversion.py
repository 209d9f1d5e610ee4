"""Weights of recurrent language models of PyTorch and Keras -> parameters. Knows arrays, not files.

A model must be Embedding -> GRU, LSTM or RNN with any number of layers -> Linear (Dense); one of
PyTorch may read one-hot vectors instead of an embedding. The cell and the sizes follow from names
and shapes. What the arrays do not show is assumed to be the default of those libraries: tanh, and
nothing but dropout between the layers.

With G gates, the parts of a layer (see `cells.CellWeights`) correspond to:

  here            PyTorch                            Keras
  input kernel    weight_ih_l* [G H, E], transposed  kernel [E, G H]
  kernel          weight_hh_l* [G H, H], transposed  recurrent_kernel [H, G H]
  biases          bias_ih_l*, bias_hh_l* [G H]       GRU bias [2, G H]; LSTM, RNN bias [G H]
  order, GRU      r z n                              z r n (n is called h)
  order, LSTM     i f g o                            i f g o (g is called c)

Where there are two biases per gate, only their sum matters, except for n of the GRU.

Sources: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html (and LSTM, RNN),
https://keras.io/api/layers/recurrent_layers/gru (`reset_after=True`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from charrnn_jax.errors import UserError, shortened
from charrnn_jax.models.cells import CELLS, CellWeights, Weights

_CELL_OF_NUM_GATES: dict[float, str] = {1: "rnn", 3: "gru", 4: "lstm"}
_KERAS_GATES = {"gru": ("z", "r", "n"), "lstm": ("i", "f", "g", "o"), "rnn": ("",)}
_PYTORCH_GATES = {name: CELLS[name].gates.names for name in _KERAS_GATES}
_MOST_ONE_HOT = 1 << 13  # characters; their table takes 256 MiB
_WHAT_CAN_BE = "only embedding -> GRU, LSTM or RNN layers -> linear can be imported"


class _Layer(NamedTuple):
    """A recurrent layer with its gates side by side: [in, G H], [H, G H], [G H], [G H]."""

    input_kernel: np.ndarray
    kernel: np.ndarray
    input_bias: np.ndarray
    bias: np.ndarray


def from_pytorch(
    arrays: Mapping[str, np.ndarray], *, shared: bool = False
) -> tuple[dict[str, Any], Any]:
    """Converts the state dict of nn.Embedding -> nn.GRU, nn.LSTM or nn.RNN -> nn.Linear.

    A model that reads one-hot vectors has no embedding; it gets the identity as its table.

    Args:
      arrays: tensors by their names in the state dict. The modules may have any names. Missing
        biases are zero. The embedding and the linear layer may share one weight.
      shared: whether a shared weight was saved once, under one of its names. Without this, a model
        with a single matrix whose vocabulary is as large as its hidden layer reads one-hot vectors.

    Returns:
      (cell and sizes for `config.model`, parameters).

    Raises:
      UserError: the model has another form, or values that are not finite.
    """
    rest = _as_finite_float32(arrays)
    for name in rest:
        if name.endswith("_reverse") or "weight_hr_l" in name:
            kind = "bidirectional" if name.endswith("_reverse") else "projected"
            raise UserError(f"tensor {name} belongs to a {kind} layer: {_WHAT_CAN_BE}")
    modules = [name.removesuffix("weight_ih_l0") for name in rest if name.endswith("weight_ih_l0")]
    if len(modules) != 1:
        raise UserError(
            f"there are {len(modules)} recurrent modules (tensors with weight_ih_l0 in their "
            f"name), not one with all layers: {_WHAT_CAN_BE}"
        )
    (module,) = modules
    layers: list[_Layer] = []
    while f"{module}weight_ih_l{len(layers)}" in rest:
        layers.append(_pop_pytorch_layer(rest, module, len(layers)))
    if layers[0].kernel.ndim != 2:
        raise UserError(f"tensor {module}weight_hh_l0 is not a matrix: {_WHAT_CAN_BE}")
    table, kernel, bias = _pop_pytorch_ends(rest, layers[0], shared=shared)
    if rest:
        raise UserError(f"unknown tensors ({_listing(rest)}): {_WHAT_CAN_BE}")
    return _assemble(table, layers, kernel.T, bias, gates=_PYTORCH_GATES)


def _pop_pytorch_layer(rest: dict[str, np.ndarray], module: str, layer: int) -> _Layer:
    input_kernel = rest.pop(f"{module}weight_ih_l{layer}").T
    kernel = rest.pop(f"{module}weight_hh_l{layer}", np.empty((0, 0))).T  # a later check refuses it
    zeros = np.zeros(input_kernel.shape[-1:], np.float32)
    input_bias, bias = (rest.pop(f"{module}bias_{side}_l{layer}", zeros) for side in ("ih", "hh"))
    return _Layer(input_kernel, kernel, input_bias, bias)


def _listing(names: Iterable[str]) -> str:
    return shortened(", ".join(sorted(names)[:12])) or "none"


def _pop_pytorch_ends(
    rest: dict[str, np.ndarray], first: _Layer, *, shared: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the embedding [V, E], and the weight [V, H] and bias [V] of the linear layer."""
    matrices = [name for name, array in rest.items() if array.ndim == 2]
    biases = [name for name, array in rest.items() if array.ndim == 1]
    if biases:
        linear = [name for name in matrices if name.removesuffix("weight") + "bias" in biases]
    else:
        linear = [name for name in matrices if rest[name].shape[1] == first.kernel.shape[0]]
    is_one_hot = False
    if len(matrices) == 1:  # a shared weight that was saved once, or no embedding
        shared |= bool(biases) and not linear  # under the name of the embedding
        linear = matrices
        is_one_hot = not shared and len(first.input_kernel) == len(rest[linear[0]])
    if len(linear) != 1 or len(matrices) > 2 or len(biases) > 1:
        raise UserError(
            "besides the recurrent layers there should be an embedding, and a linear layer that "
            "differs from it in its bias or its shape; the other tensors are "
            f"{_listing(rest)}: {_WHAT_CAN_BE}"
        )
    (kernel_name,) = linear
    (table_name,) = set(matrices) - {kernel_name} or linear
    table, kernel = rest[table_name], rest[kernel_name]
    if is_one_hot:
        if len(kernel) > _MOST_ONE_HOT:
            raise UserError(
                f"the model reads one-hot vectors of {len(kernel):,} characters; at most "
                f"{_MOST_ONE_HOT:,} can be imported"
            )
        table = np.eye(len(kernel), dtype=np.float32)
    bias = rest[biases[0]] if biases else np.zeros(len(kernel), np.float32)
    for name in (*matrices, *biases):
        del rest[name]
    return table, kernel, bias


def from_keras(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Any]:
    """Converts the weights of Embedding -> GRU, LSTM or SimpleRNN layers -> Dense.

    Args:
      arrays: arrays in the order of `model.get_weights()`; their names do not matter.

    Returns:
      (cell and sizes for `config.model`, parameters).

    Raises:
      UserError: the model has another form, or values that are not finite.
    """
    if len(arrays) < 6 or len(arrays) % 3:
        raise UserError(
            f"there are {len(arrays)} arrays; with L recurrent layers there should be 3 L + 3 "
            "(embeddings; kernel, recurrent kernel and bias of each layer; dense kernel and bias): "
            f"{_WHAT_CAN_BE}"
        )
    table, *recurrent, kernel, bias = _as_finite_float32(arrays).values()
    threes = zip(recurrent[::3], recurrent[1::3], recurrent[2::3], strict=True)
    layers = [_keras_layer(*three) for three in threes]
    return _assemble(table, layers, kernel, bias, gates=_KERAS_GATES)


def _keras_layer(input_kernel: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> _Layer:
    if bias.ndim == 2 and len(bias) == 2:
        return _Layer(input_kernel, kernel, *bias)
    if kernel.ndim == 2 and 3 * len(kernel) == kernel.shape[1] == bias.size:
        raise UserError(
            f"the bias of the GRU has the shape {list(bias.shape)}, not [2, {bias.size}]: it was "
            "made with reset_after=False, a GRU that cannot be imported; train it with Keras's "
            "default, reset_after=True"
        )
    return _Layer(input_kernel, kernel, bias, np.zeros_like(bias))


def _as_finite_float32(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    converted = {}
    for name, array in arrays.items():
        is_float = jnp.issubdtype(array.dtype, jnp.floating)  # NumPy's does not know bfloat16
        with np.errstate(over="ignore"):
            converted[name] = array.astype(np.float32) if is_float else array
        if not (array.size and is_float and np.isfinite(converted[name]).all()):
            raise UserError(
                f"array {shortened(name)} is empty, or has values that are not finite float32"
            )
    return converted


def _assemble(
    table: np.ndarray,
    layers: Sequence[_Layer],
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    gates: Mapping[str, Sequence[str]],
) -> tuple[dict[str, Any], Any]:
    """Checks all shapes and splits the gates. gates: their names by cell, in the layers' order."""
    if table.ndim != 2 or layers[0].kernel.ndim != 2:
        raise UserError(f"the embedding or the recurrent kernel is not a matrix: {_WHAT_CAN_BE}")
    (V, E), (H, width) = table.shape, layers[0].kernel.shape
    cell = _CELL_OF_NUM_GATES.get(width / max(H, 1), "")
    if not cell:
        raise UserError(
            f"the recurrent kernel has the shape [{H}, {width}]: for {H} units a GRU has "
            f"{3 * H} columns, an LSTM {4 * H} and an RNN {H}"
        )
    shapes = {"linear layer's kernel": (kernel, (H, V)), "linear layer's bias": (bias, (V,))}
    for index, layer in enumerate(layers):
        expected = ((H if index else E, width), (H, width), (width,), (width,))
        for name, array, shape in zip(layer._fields, layer, expected, strict=True):
            shapes[f"recurrent layer {index + 1}'s {name}"] = (array, shape)
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise UserError(
                f"the {name} has the shape {list(array.shape)}, which does not fit the other "
                f"arrays: it should be {list(shape)}; {_WHAT_CAN_BE}"
            )
    settings = {"cell": cell, "embedding_size": E, "hidden_size": H, "num_layers": len(layers)}
    params: dict[str, Any] = {
        "embedding": {"embedding": table},
        "dense": {"kernel": kernel, "bias": bias},
    }
    for index, layer in enumerate(layers):
        params[f"layers_{index}"] = {"cell": _split_gates(layer, cell=cell, gates=gates[cell])}
    return settings, params


def _split_gates(layer: _Layer, *, cell: str, gates: Sequence[str]) -> dict[str, Any]:
    """Returns the parameters of the Flax cell. gates: their names, in the layer's order."""
    layout = CELLS[cell].gates
    order = [gates.index(gate) for gate in layout.names]

    def reorder(array: np.ndarray) -> np.ndarray:
        blocks = np.split(array, len(gates), axis=-1)
        return np.concatenate([blocks[index] for index in order], axis=-1)

    input_kernel, kernel, input_bias, bias = map(reorder, layer)
    apart = len(kernel) if layout.last_bias else 0  # r multiplies only one of the last two
    input_bias[: input_bias.size - apart] += bias[: bias.size - apart]
    last = {"h": bias[-apart:]} if apart else {}
    weights = CellWeights(
        Weights({"i": input_kernel}, {"i": input_bias}), Weights({"h": kernel}, last)
    )
    return layout.scatter(weights)
