"""Runs any cell that has a `Fused` form over time, with the parameters of its Flax module.

Autodiff of a scanned cell adds up the weight gradient inside the backward loop: a thin product and
a pass over the whole matrix at every step. Here

  - the input side is computed before the loop; for tokens it is a table, the embedding projected
    once, and the loop reads rows of it;
  - the forward loop keeps the operand and the result of every product y = x W, the values of
    sigmoid, tanh and exp, and the carry;
  - the backward loop replays the step with what was kept, so only sums and the like are computed
    again, and lets JAX differentiate it; the gradient of a product is d_x = d_y W^T;
  - the gradient of each kernel is one large product after the loop, the sum of x^T d_y.

With bfloat16 the operands of products are rounded; sums, carry and everything elementwise stay in
float32. Gradients of gradients work in float32. Forward-mode differentiation needs the scan.

Letters: a is the input side; d_y is the gradient of the loss with respect to y.

Source: products moved out of the loop, Appleyard et al. 2016 (arXiv:1604.01946).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from charrnn_jax.models.cells import Fused, Operations, Weights
from charrnn_jax.models.cells.cell import Elementwise
from charrnn_jax.models.products import dot, reverse_product, times_transposed

# From this size on, a transposed kernel makes the forward loop faster, as measured on CPUs.
_LARGE_BYTES = 8 << 20


def run_fused(
    params: Any,
    carry: Any,
    inputs: jax.Array,
    *,
    fused: Fused,
    dtype: str = "float32",
    held: Any = None,
) -> tuple[Any, jax.Array]:
    """Runs one layer over time.

    Args:
      params: parameters of the cell's Flax module.
      carry: carry of the cell, for B sequences.
      inputs: [B, T, E] inputs of the layer.
      fused: fused form of the cell.
      dtype: type of the operands of products, "float32" or "bfloat16".
      held: a tree of arrays [T, ...] without gradients that the step reads beside a, as (a, held of
        the step); None: it reads a.

    Returns:
      (carry after the last step, outputs [B, T, H]).
    """
    weights = fused.gather(params)
    # Time first before the product, since a is larger than the inputs: one copy less of it.
    a = fused_read(fused, weights.inputs, inputs.swapaxes(0, 1), dtype=dtype)  # [T, B, N]
    return _run(fused, dtype, None, a, held, carry, weights.recurrent, inputs.shape[0])


def run_fused_on_tokens(
    params: Any,
    carry: Any,
    tokens: jax.Array,
    *,
    table: jax.Array,
    fused: Fused,
    dtype: str = "float32",
    held: Any = None,
) -> tuple[Any, jax.Array]:
    """Runs one layer over the embeddings of tokens; equals `run_fused` on table[tokens].

    Args:
      params: parameters of the cell's Flax module.
      carry: carry of the cell, for B sequences.
      tokens: [B, T] ids.
      table: [V, E] embeddings.
      fused: fused form of the cell.
      dtype: type of the operands of products, "float32" or "bfloat16".
      held: a tree of arrays [T, ...] without gradients that the step reads beside a, as (a, held of
        the step); None: it reads a.

    Returns:
      (carry after the last token, outputs [B, T, H]).
    """
    # Projecting a table with more rows than there are tokens would be the larger product.
    if table.shape[0] > tokens.size:
        return run_fused(params, carry, table[tokens], fused=fused, dtype=dtype, held=held)
    weights = fused.gather(params)
    rows = fused_read(fused, weights.inputs, table, dtype=dtype)  # [V, N]
    return _run(fused, dtype, rows, tokens.T, held, carry, weights.recurrent, tokens.shape[0])


def fused_read(fused: Fused, weights: Weights, x: jax.Array, *, dtype: str) -> Any:
    """Returns the input side of a cell.

    Args:
      fused: fused form of the cell.
      weights: weights of the input side.
      x: [..., E] inputs of the layer.
      dtype: type of the operands of products, "float32" or "bfloat16".
    """

    def times(name: str, x: jax.Array) -> jax.Array:
        return reverse_product(x, weights.kernels[name], dtype)

    return fused.read(Operations(times, repeat(weights.vectors, *x.shape[:-1])), x)


def repeat(vectors: Mapping[str, Any], *sizes: int) -> dict[str, jax.Array]:
    """Returns vectors [...] repeated along new axes, as [*sizes, ...]."""
    return {name: jnp.broadcast_to(v, (*sizes, *v.shape)) for name, v in vectors.items()}


def times_kernel(x: jax.Array, kernel: jax.Array, *, transposed: bool = False) -> jax.Array:
    """Returns the product of rows x [B, K] and a kernel in the type of the operands, [B, N].

    Args:
      x: [B, K] rows; [B, heads, K] for a kernel with heads.
      kernel: [K, N], or [N, K] if `transposed`; of each head on its own with one more axis before.
      transposed: whether the kernel is transposed.
    """
    multiply = times_transposed if transposed else partial(dot, contracting=((1,), (0,)))
    if kernel.ndim > 2:
        multiply = jax.vmap(multiply, in_axes=(1, 0), out_axes=1)
    product_of_rows: jax.Array = multiply(x, kernel)
    return product_of_rows


def _run(
    fused: Fused,
    dtype: str,
    table: Any,
    xs: Any,
    held: Any,
    carry: Any,
    weights: Weights,
    batch_size: int,
) -> tuple[Any, jax.Array]:
    # Repeated here, so that the loop adds up a gradient for each sequence: elementwise, without a
    # sum over devices at every step.
    vectors = repeat(weights.vectors, batch_size)
    carry, outputs = _recurrence(fused, dtype, table, xs, held, carry, weights.kernels, vectors)
    return carry, outputs.swapaxes(0, 1)


def input_of_step(fused: Fused, table: Any, x: Any) -> Any:
    """Returns the input side that a step reads.

    Args:
      fused: fused form of the cell.
      table: the input side for every id, [V, N] or a tuple of such; None: x is the input side.
      x: [B] ids, or the input side of B sequences.
    """
    a = x if table is None else jax.tree.map(lambda rows: rows[x], table)
    return a if fused.input_parts == 1 else jnp.split(a, fused.input_parts, axis=-1)


def _operations(
    multiply: Callable[[str, jax.Array, int], list[jax.Array]],
    vectors: Mapping[str, jax.Array],
    apply: Callable[[Elementwise, jax.Array], jax.Array],
) -> Operations:
    """Returns operations whose whole products are those in one part."""
    return Operations(lambda name, x: multiply(name, x, 1)[0], vectors, apply, multiply)


def _beside(held: Any, a: Any) -> Any:
    return a if held is None else (a, held)


def _forward(
    fused: Fused, dtype: str, table: Any, xs: Any, held: Any, carry: Any, kernels: Any, vectors: Any
) -> tuple[tuple[Any, jax.Array], Any]:
    """Returns ((last carry, outputs [T, B, H]), kept).

    What is kept of all steps: the carries before each step, the operands and the results of the
    products, and the values of elementwise functions.
    """
    cast = {name: kernel.astype(dtype) for name, kernel in kernels.items()}
    transposed = {name for name, kernel in cast.items() if kernel.nbytes >= _LARGE_BYTES}
    for name in transposed:
        cast[name] = lax.optimization_barrier(cast[name].swapaxes(-1, -2))
    once = _Once()

    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        x, held = now
        operands, results, values = [], [], []

        def multiply(name: str, x: jax.Array, num_parts: int) -> list[jax.Array]:
            y = times_kernel(x, cast[name], transposed=name in transposed)
            operands.append(x)
            results.append(jnp.split(y, num_parts, axis=-1))
            return results[-1]

        def apply(function: Elementwise, x: jax.Array) -> jax.Array:
            values.append(function.f(x))
            return values[-1]

        ops = _operations(multiply, vectors, apply)
        new_carry, y = fused.step(ops, carry, _beside(held, input_of_step(fused, table, x)))
        return new_carry, (y, once.pack((carry, operands, results, values)))

    carry, (outputs, kept) = lax.scan(step, carry, (xs, held))
    return (carry, outputs), once.unpack(kept)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(*args: Any) -> tuple[Any, jax.Array]:
    return _forward(*args)[0]


def _recurrence_fwd(fused: Fused, dtype: str, *args: Any) -> tuple[tuple[Any, jax.Array], Any]:
    result, kept = _forward(fused, dtype, *args)
    return result, (kept, *args)


def _recurrence_bwd(fused: Fused, dtype: str, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    (carries, operands, results, values), table, xs, held, _, kernels, vectors = residuals
    d_carry, d_outputs = gradients
    cast = {name: kernel.astype(dtype) for name, kernel in kernels.items()}
    once, names = _Once(), [""] * len(results)  # names: of the kernels of the products

    def step(sums: Any, now: Any) -> tuple[Any, Any]:
        d_carry, d_vectors = sums
        d_output, x, held, carry, results, values = now

        def replay(vectors: Any, carry: Any, a: Any, results: Any) -> Any:
            results_left, values_left = iter(enumerate(results)), iter(values)

            def multiply(name: str, x: jax.Array, num_parts: int) -> list[jax.Array]:
                index, parts = next(results_left)
                names[index] = name
                return _replayed_product(x, parts, cast[name])

            def apply(function: Elementwise, x: jax.Array) -> jax.Array:
                return _replayed_function(function, x, next(values_left))

            return fused.step(_operations(multiply, vectors, apply), carry, _beside(held, a))

        _, pull_back = jax.vjp(replay, vectors, carry, input_of_step(fused, table, x), results)
        d_vectors_now, d_carry, d_a, d_results = pull_back((d_carry, d_output))
        d_vectors = jax.tree.map(jnp.add, d_vectors, d_vectors_now)
        # Where a is added to a product, they have one gradient, which is rounded for both.
        rounded = {id(d): _to_bits(d.astype(dtype)) for d in jax.tree.leaves(d_results)}
        d = jax.tree.map(lambda d: rounded.get(id(d), d), (d_results, d_a))
        return (d_carry, d_vectors), once.pack(d)

    zeros = jax.tree.map(jnp.zeros_like, vectors)
    steps = d_outputs, xs, held, carries, results, values
    (d_carry, d_vectors), kept = lax.scan(step, (d_carry, zeros), steps, reverse=True)
    d_results, d_a = jax.tree.map(_from_bits, once.unpack(kept))

    d_kernels = jax.tree.map(jnp.zeros_like, kernels)
    for name, x, d_parts in zip(names, operands, d_results, strict=True):
        sum_of_outer = partial(dot, contracting=((0, 1), (0, 1)))
        if kernels[name].ndim > 2:
            sum_of_outer = jax.vmap(sum_of_outer, in_axes=(2, 2))
        d_kernels[name] += jnp.concatenate([sum_of_outer(x, d) for d in d_parts], axis=-1)

    def joined(d_parts: Any) -> Any:
        return d_parts if fused.input_parts == 1 else jnp.concatenate(d_parts, axis=-1)

    if table is None:
        d_xs = jax.tree.map(lambda d, x: d.astype(x.dtype), joined(d_a), xs)
        return None, d_xs, None, d_carry, d_kernels, d_vectors
    num_rows = len(jax.tree.leaves(table)[0])
    d_table = joined(jax.tree.map(partial(sum_rows, xs, num_rows=num_rows, dtype=dtype), d_a))
    return d_table, None, None, d_carry, d_kernels, d_vectors


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


@jax.custom_vjp
def _replayed_product(x: jax.Array, parts: list[jax.Array], kernel: jax.Array) -> list[jax.Array]:
    """Returns the parts of y, which is known to be the product of x and kernel.

    The gradient of the kernel is left out: the gradient of y, from which it follows, is that of
    this function's second argument.
    """
    return parts


_replayed_product.defvjp(
    lambda x, parts, kernel: (parts, kernel),
    lambda kernel, d_parts: (
        times_kernel(jnp.concatenate(d_parts, axis=-1), kernel, transposed=True),
        d_parts,
        None,
    ),
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _replayed_function(function: Elementwise, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns y, which is known to be function.f(x)."""
    return y


_replayed_function.defvjp(
    lambda function, x, y: (y, y),
    lambda function, y, d_y: (d_y * function.slope(y), None),
)


class _Once:
    """Packs the arrays of a tree for storage inside a loop, each once even if the tree repeats it.

    What a cell passes on unchanged is repeated: the operand of a product is often the carry.
    """

    _positions: Any  # the tree, with the position of an array among the packed ones at its place

    def pack(self, tree: Any) -> list[jax.Array]:
        arrays = list({id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values())
        position = {id(array): index for index, array in enumerate(arrays)}
        self._positions = jax.tree.map(lambda leaf: position[id(leaf)], tree)
        return arrays

    def unpack(self, arrays: list[jax.Array]) -> Any:
        return jax.tree.map(lambda index: arrays[index], self._positions)


def sum_rows(tokens: jax.Array, d: jax.Array, *, num_rows: int, dtype: str) -> jax.Array:
    """Sums d [T, B, N] by token; returns [V, N]."""
    if num_rows > 256:
        return jnp.zeros((num_rows, d.shape[-1])).at[tokens].add(d)
    # On a CPU a product is faster than scattered additions.
    return dot(jax.nn.one_hot(tokens, num_rows), d.astype(dtype), ((0, 1), (0, 1)))


@jax.custom_jvp
def _to_bits(x: jax.Array) -> jax.Array:
    """Returns bfloat16 as integers, for storage inside a loop; float32 is returned unchanged.

    On CPUs, XLA stores bfloat16 into an array of all steps value by value, through float32.
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


@_to_bits.defjvp
def _to_bits_jvp(primals: Any, tangents: Any) -> Any:
    if primals[0].dtype == jnp.bfloat16:
        raise NotImplementedError(
            "a gradient of a gradient needs float32, not bfloat16: set the dtype to float32"
        )
    return primals[0], tangents[0]


def _from_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.bfloat16) if bits.dtype == jnp.uint16 else bits
