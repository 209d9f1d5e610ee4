"""Runs any cell that has a `Fused` form over time, with the parameters of its Flax module.

Autodiff of a scanned cell adds up the weight gradient inside the backward loop: a thin product and
a pass over the whole matrix at every step. Here

  - the input side of all gates is computed before the loop; for tokens it is a table, the embedding
    projected once, and the loop reads rows of it;
  - one product per step serves all gates, in the forward and in the backward loop;
  - the gradient of the recurrent kernel is one large product after the loop.

With bfloat16 the operands of products are rounded; sums, carry and everything elementwise stay in
float32. Gradients of gradients work in float32. Forward-mode differentiation needs the scan.

Letters: a is the input side of the gates, q = h W the recurrent side; d_y is the gradient of the
loss with respect to y.

Source: products moved out of the loop, Appleyard et al. 2016 (arXiv:1604.01946).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from charrnn_jax.models.cells import Fused
from charrnn_jax.models.cells.cell import Blocks
from charrnn_jax.models.products import dot, product, times_transposed

# From this size on, a transposed kernel makes the forward loop faster, as measured on CPUs.
_LARGE_BYTES = 8 << 20


def run_fused(
    params: Any, carry: Any, inputs: jax.Array, *, fused: Fused, dtype: str = "float32"
) -> tuple[Any, jax.Array]:
    """Runs one layer over time.

    Args:
      params: parameters of the cell's Flax module.
      carry: carry of the cell, for B sequences.
      inputs: [B, T, E] inputs of the layer.
      fused: fused form of the cell.
      dtype: type of the operands of products, "float32" or "bfloat16".

    Returns:
      (carry after the last step, outputs [B, T, H]).
    """
    weights = fused.gather(params)
    a = product(inputs, weights.input_kernel, dtype=dtype)
    a += jnp.broadcast_to(weights.input_bias, a.shape)
    xs = a.swapaxes(0, 1)  # [T, B, G H]
    carry, outputs = _recurrence(fused, dtype, None, xs, carry, weights.kernel, weights.bias)
    return carry, outputs.swapaxes(0, 1)


def run_fused_on_tokens(
    params: Any,
    carry: Any,
    tokens: jax.Array,
    *,
    table: jax.Array,
    fused: Fused,
    dtype: str = "float32",
) -> tuple[Any, jax.Array]:
    """Runs one layer over the embeddings of tokens; equals `run_fused` on table[tokens].

    Args:
      params: parameters of the cell's Flax module.
      carry: carry of the cell, for B sequences.
      tokens: [B, T] ids.
      table: [V, E] embeddings.
      fused: fused form of the cell.
      dtype: type of the operands of products, "float32" or "bfloat16".

    Returns:
      (carry after the last token, outputs [B, T, H]).
    """
    # Projecting a table with more rows than there are tokens would be the larger product.
    if table.shape[0] > tokens.size:
        return run_fused(params, carry, table[tokens], fused=fused, dtype=dtype)
    weights = fused.gather(params)
    rows = product(table, weights.input_kernel, dtype=dtype)  # [V, G H]
    rows += jnp.broadcast_to(weights.input_bias, rows.shape)
    carry, outputs = _recurrence(fused, dtype, rows, tokens.T, carry, weights.kernel, weights.bias)
    return carry, outputs.swapaxes(0, 1)


def fused_step(
    fused: Fused,
    carry: Any,
    *,
    a: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    transposed: bool = False,
) -> tuple[Any, Blocks]:
    """Runs one time step.

    Args:
      fused: fused form of the cell.
      carry: carry of the cell, for B sequences.
      a: [B, G H] input side of the gates.
      kernel: recurrent kernel in the type of the product's operands, [H, G H], or [G H, H] if
        `transposed`.
      bias: bias of the last gate's recurrent side, see `CellWeights`; None: there is none.
      transposed: whether the kernel is transposed.

    Returns:
      (carry, saved), see `Fused.forward`.
    """
    num_gates = len(fused.gates)
    h = output(carry)
    product_of_all = times_transposed(h, kernel) if transposed else dot(h, kernel, ((1,), (0,)))
    q = jnp.split(product_of_all, num_gates, axis=-1)
    if bias is not None:
        q[-1] = q[-1] + bias[None]
    return fused.forward(tuple(jnp.split(a, num_gates, axis=-1)), tuple(q), carry)


def _forward(
    fused: Fused, dtype: str, table: Any, xs: jax.Array, carry: Any, kernel: jax.Array, bias: Any
) -> tuple[tuple[Any, jax.Array], Any]:
    """Returns ((last carry, outputs [T, B, H]), (saved, carries before each step))."""
    kernel = kernel.astype(dtype)
    transposed = kernel.nbytes >= _LARGE_BYTES
    if transposed:
        kernel = lax.optimization_barrier(kernel.T)

    def step(carry: Any, x: jax.Array) -> tuple[Any, Any]:
        a = x if table is None else table[x]
        new_carry, saved = fused_step(
            fused, carry, a=a, kernel=kernel, bias=bias, transposed=transposed
        )
        return new_carry, (output(new_carry), saved, carry)

    carry, (outputs, *saved) = lax.scan(step, carry, xs)
    return (carry, outputs), saved


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(*args: Any) -> tuple[Any, jax.Array]:
    return _forward(*args)[0]


def _recurrence_fwd(fused: Fused, dtype: str, *args: Any) -> tuple[tuple[Any, jax.Array], Any]:
    result, saved = _forward(fused, dtype, *args)
    return result, (saved, *args)


def _recurrence_bwd(fused: Fused, dtype: str, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    (saved, carries), table, xs, _, kernel, bias = residuals
    d_carry, d_outputs = gradients
    cast_kernel = kernel.astype(dtype)

    def step(d_carry: Any, x: Any) -> tuple[Any, Any]:
        d_output, saved, carry = x
        d_carry = _add_to_h(d_carry, d_output)
        blocks, d_a_last, d_carry = fused.backward(d_carry, saved, carry)
        d_q = jnp.concatenate(blocks, axis=-1).astype(dtype)  # [B, G H]
        d_h = times_transposed(d_q, cast_kernel)
        return _add_to_h(d_carry, d_h), (_to_bits(d_q), d_a_last)

    d_carry, (d_q, d_a_last) = lax.scan(step, d_carry, (d_outputs, saved, carries), reverse=True)
    d_q, hidden_size = _from_bits(d_q), kernel.shape[0]
    d_kernel = dot(output(carries), d_q, ((0, 1), (0, 1)))
    d_bias = None if bias is None else d_q[..., -hidden_size:].sum((0, 1), dtype=bias.dtype)

    def with_last(d_a: jax.Array, last: jax.Array | None) -> jax.Array:
        return d_a if last is None else jnp.concatenate([d_a[..., :-hidden_size], last], axis=-1)

    if table is None:
        return None, with_last(d_q.astype(xs.dtype), d_a_last), d_carry, d_kernel, d_bias
    sums = jax.tree.map(partial(_sum_rows, xs, num_rows=table.shape[0]), (d_q, d_a_last))
    return with_last(*sums), None, d_carry, d_kernel, d_bias


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _sum_rows(tokens: jax.Array, d: jax.Array, *, num_rows: int) -> jax.Array:
    """Sums d [T, B, N] by token; returns [V, N]."""
    if num_rows > 256:
        return jnp.zeros((num_rows, d.shape[-1])).at[tokens].add(d)
    # On a CPU a product is faster than scattered additions.
    return dot(jax.nn.one_hot(tokens, num_rows, dtype=d.dtype), d, ((0, 1), (0, 1)))


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


def output(carry: Any) -> jax.Array:
    """Returns the output h [B, H] in a carry, which the layer above reads."""
    return carry[-1] if isinstance(carry, tuple) else carry


def _add_to_h(carry: Any, d_h: jax.Array) -> Any:
    return (*carry[:-1], carry[-1] + d_h) if isinstance(carry, tuple) else carry + d_h
