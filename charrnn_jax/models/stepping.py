"""A trained model one character at a time, with weights that are arranged for this once.

  table     the input side of the first layer for every token, such as the embedding times the first
            input kernel
  kernels   those of the fused form, such as all gates side by side, in the dtype of the products;
            transposed or not, see `prefers_transposed`

The equations are those of the cell. A model whose form is "scan" keeps its own parameters and is
called directly, which is the reference. One whose form is "parallel" steps with the fused form.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from charrnn_jax.models.cells import CELLS, CellWeights, Operations, Weights
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params, forward
from charrnn_jax.models.clamping import ClampedWeights
from charrnn_jax.models.dropout import drops
from charrnn_jax.models.ends import dense_kernel
from charrnn_jax.models.fused import fused_read, input_of_step, repeat, times_kernel
from charrnn_jax.models.recurrence import choose_form
from charrnn_jax.models.zoneout import expected_held, with_zoneout


@struct.dataclass
class StepWeights:
    """Parameters of a model in the layout that `step` reads.

    Attributes:
      table: input side of the first layer for every token, [V, N] or a tuple of such.
      layers: weights of each layer; those of the first's input side are in the table.
      dense_kernel: kernel of the dense layer, [H, V], or [L H, V] if it reads all layers. If it is
        tied to the embedding, the product of its matrices.
      dense_bias: [V] bias of the dense layer.
      transposed: whether all kernels, including the dense one, are transposed; static.
    """

    table: Any
    layers: tuple[CellWeights, ...]
    dense_kernel: jax.Array
    dense_bias: jax.Array
    transposed: bool = struct.field(pytree_node=False)


def prefers_transposed(batch_size: int, *, dtype: str) -> bool:
    """Returns whether B sequences are faster with transposed kernels, as measured on CPUs.

    The product of one row and a matrix reads the matrix along its columns. For many rows, see
    `products.times_transposed`. A few rows are fastest with the kernel as it is.

    Args:
      batch_size: B, in sequences.
      dtype: type of the operands of products, "float32" or "bfloat16".
    """
    many = {"float32": 8, "bfloat16": 16}[dtype]
    return batch_size == 1 or batch_size >= many


def prepare(params: Params, *, model: CharRNN, transposed: bool, dtype: str | None = None) -> Any:
    """Arranges the weights of a model for `step`.

    Args:
      params: parameters of the model, as returned by `initialize_params`.
      model: the model.
      transposed: whether to transpose the kernels, see `prefers_transposed`; both layouts work for
        any number of sequences.
      dtype: type of the operands of products, "float32" or "bfloat16"; None: the model's.

    Returns:
      `StepWeights`, or the parameters themselves if the form of the model is "scan".

    Raises:
      UserError: the dtype is unknown, or the model does not support it.
    """
    dtype = dtype or model.dtype
    if check_dtype(dtype, model=model) == "scan":
        return params
    return _lay_out(params, model=model, dtype=dtype, transposed=transposed)


def check_dtype(dtype: str, *, model: CharRNN) -> str:
    """Returns the form of a model with products of `dtype`; see `choose_form`."""
    return choose_form(
        CELLS[model.cell], implementation=model.implementation, dtype=dtype, zoneout=model.zoneout
    )


@partial(jax.jit, static_argnames=("model", "dtype", "transposed"))
def _lay_out(params: Params, *, model: CharRNN, dtype: str, transposed: bool) -> StepWeights:
    def arrange(kernel: jax.Array) -> jax.Array:
        return (kernel.swapaxes(-1, -2) if transposed else kernel).astype(dtype)

    def arrange_all(weights: Weights) -> Weights:
        return weights._replace(kernels=jax.tree.map(arrange, weights.kernels))

    fused = CELLS[model.cell].fused
    gathered = [fused.gather(params[f"layers_{i}"]["cell"]) for i in range(model.num_layers)]
    layers = [CellWeights(*map(arrange_all, weights)) for weights in gathered]
    embedding: Any = model.clone(dtype=dtype).apply(
        {"params": params}, method=lambda model: model.embedding()
    )
    return StepWeights(
        table=fused_read(fused, gathered[0].inputs, embedding, dtype=dtype),
        layers=(layers[0]._replace(inputs=Weights({}, {})), *layers[1:]),
        dense_kernel=arrange(dense_kernel(params["dense"], table=embedding)),
        dense_bias=params["dense"]["bias"],
        transposed=transposed,
    )


def step(
    weights: Any, carry: Carry, tokens: jax.Array, *, model: CharRNN
) -> tuple[Carry, jax.Array]:
    """Reads one character of every sequence; equals `forward` on a text of length 1.

    Args:
      weights: weights of the model, as returned by `prepare` or `clamp_units`.
      carry: carry of the model, for B sequences.
      tokens: [B] ids.
      model: the model.

    Returns:
      (carry, logits [B, V] for the character after each).
    """
    clamped = weights if isinstance(weights, ClampedWeights) else None
    if clamped:
        weights = clamped.weights
    if not isinstance(weights, StepWeights):
        return _step_module(weights, carry, tokens, model=model, clamped=clamped)

    times = partial(times_kernel, transposed=weights.transposed)

    def operations(of: Weights) -> Operations:
        vectors = repeat(of.vectors, tokens.shape[0])
        return Operations(lambda name, x: times(x, of.kernels[name]), vectors)

    cell = CELLS[model.cell]
    fused = with_zoneout(cell) if drops(model.zoneout) else cell.fused
    a = input_of_step(fused, weights.table, tokens)
    new_carry: list[Any] = []
    outputs: list[jax.Array] = []
    for index, (layer, layer_carry) in enumerate(zip(weights.layers, carry, strict=True)):
        if outputs:
            a = fused.read(operations(layer.inputs), outputs[-1])
            a = input_of_step(fused, None, a)
        if drops(model.zoneout):
            a = a, expected_held(layer_carry, rate=model.zoneout)
        layer_carry, y = fused.step(operations(layer.recurrent), layer_carry, a)
        if clamped:
            layer_carry = clamped.hold_carry(layer_carry, index, cell=cell)
            y = clamped.hold(y, index)
        if outputs and model.residual == "add":
            y += outputs[-1]
        new_carry.append(layer_carry)
        outputs.append(y)
    read = outputs[-1] if model.readout == "last" else jnp.concatenate(outputs, axis=-1)
    logits = times(read, weights.dense_kernel) + weights.dense_bias[None]
    return tuple(new_carry), logits


def _step_module(
    params: Params,
    carry: Carry,
    tokens: jax.Array,
    *,
    model: CharRNN,
    clamped: ClampedWeights | None,
) -> tuple[Carry, jax.Array]:
    """Does what `step` does, with the model's own parameters."""
    if clamped is None:
        carry, logits = forward(params, carry, tokens[:, None], model=model)
        return carry, logits[:, 0]
    computed: Any
    new_carry, computed = model.apply(
        {"params": params}, carry, tokens[:, None], transform=clamped.hold, method="run"
    )
    cell = CELLS[model.cell]
    held = (clamped.hold_carry(of_layer, i, cell=cell) for i, of_layer in enumerate(new_carry))
    return tuple(held), computed.logits[:, 0]
