"""Runs a cell over a whole sequence at once, if it has a `Parallel` form.

Such a cell is linear in its carry, so everything but the recurrence itself is computed for all
steps together, in products of T B rows: before it, the input side and the coefficients, and after
it, what the cell makes of its carry. For tokens, the input side is computed once for each row of
the embedding table, with its elementwise functions. The parameters are those of the Flax module,
arranged as in the fused form.

With bfloat16 the operands of products are rounded; sums, carry and everything elementwise stay in
float32. The recurrence itself is in `linear`.
"""

from functools import partial
from typing import Any

import jax

from charrnn_jax.models.cells import Fused, Operations, Parallel, Weights
from charrnn_jax.models.fused import fused_read, repeat, sum_rows
from charrnn_jax.models.products import product


def run_parallel(
    params: Any,
    carry: Any,
    inputs: jax.Array,
    *,
    fused: Fused,
    parallel: Parallel,
    dtype: str = "float32",
) -> tuple[Any, jax.Array]:
    """Runs one layer over time.

    Args:
      params: parameters of the cell's Flax module.
      carry: carry of the cell, for B sequences.
      inputs: [B, T, E] inputs of the layer.
      fused: fused form of the cell, for its parameters and its input side.
      parallel: parallel form of the cell.
      dtype: type of the operands of products, "float32" or "bfloat16".

    Returns:
      (carry after the last step, outputs [B, T, H]).
    """
    weights = fused.gather(params)
    a = fused_read(fused, weights.inputs, inputs.swapaxes(0, 1), dtype=dtype)  # [T, B, N]
    return _run(parallel, dtype, weights.recurrent, carry, a)


def run_parallel_on_tokens(
    params: Any,
    carry: Any,
    tokens: jax.Array,
    *,
    table: jax.Array,
    fused: Fused,
    parallel: Parallel,
    dtype: str = "float32",
) -> tuple[Any, jax.Array]:
    """Runs one layer over the embeddings of tokens; equals `run_parallel` on table[tokens].

    Args:
      params: parameters of the cell's Flax module.
      carry: carry of the cell, for B sequences.
      tokens: [B, T] ids.
      table: [V, E] embeddings.
      fused: fused form of the cell, for its parameters and its input side.
      parallel: parallel form of the cell.
      dtype: type of the operands of products, "float32" or "bfloat16".

    Returns:
      (carry after the last token, outputs [B, T, H]).
    """
    # Reading a table with more rows than there are tokens would be the larger product.
    if table.shape[0] > tokens.size:
        return run_parallel(
            params, carry, table[tokens], fused=fused, parallel=parallel, dtype=dtype
        )
    weights = fused.gather(params)
    read = fused_read(fused, weights.inputs, table, dtype=dtype)  # [V, N]
    a = jax.tree.map(lambda rows: _take_rows(dtype, rows, tokens.T), read)  # [T, B, N]
    return _run(parallel, dtype, weights.recurrent, carry, a)


def _run(
    parallel: Parallel, dtype: str, weights: Weights, carry: Any, a: Any
) -> tuple[Any, jax.Array]:
    def times(name: str, x: jax.Array) -> jax.Array:
        return product(x, weights.kernels[name], dtype=dtype)

    length, batch_size = jax.tree.leaves(a)[0].shape[:2]
    ops = Operations(times, repeat(weights.vectors, length, batch_size))
    carry, outputs = parallel(ops, carry, a)
    return carry, outputs.swapaxes(0, 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_rows(dtype: str, rows: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns rows[ids], with a gradient that is summed by id as in the fused form."""
    return rows[ids]


_take_rows.defvjp(
    lambda dtype, rows, ids: (rows[ids], (ids, len(rows))),
    lambda dtype, saved, d: (sum_rows(saved[0], d, num_rows=saved[1], dtype=dtype), None),
)
