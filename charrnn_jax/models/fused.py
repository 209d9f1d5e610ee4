"""The recurrences by hand: the same equations and parameters as the cells, much less work a step.

What autodiff makes of a scanned cell adds up the weight gradient inside the backward loop: a thin
product and a pass over the whole matrix, every step. Here

  - the input side of all gates is computed before the loop; for tokens it is a table, the embedding
    projected once, of which the loop reads rows;
  - one product a step serves all gates, in the forward and in the backward loop;
  - the gradient of the recurrent kernel is one big product behind the loop.

With bfloat16 the operands of products are rounded to it; sums, carry and everything elementwise
stay in float32. Reverse mode can be nested in float32; forward mode is refused by JAX (the scan can
do it).

Letters: G gates; a the input side of the gates, q = h W their recurrent side; d_y the gradient of
the loss by y. Equations: see `cells`.

Source: hoisting the products out of the loop, Appleyard et al. 2016 (arXiv:1604.01946).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Blocks = tuple[jax.Array, ...]  # one [B, H] a gate

# By measurement on a CPU, see `times_transposed`.
_LARGE_BYTES = 8 << 20  # of a kernel that is better transposed for the forward loop
_FEW_ROWS = {"float32": 2, "bfloat16": 16}  # fewer: the exchange costs more than it saves


class CellWeights(NamedTuple):
    """The parameters of a cell, its gates side by side.

    Attributes:
      input_kernel: [E, G H].
      input_bias: [G H], the bias of every gate.
      kernel: [H, G H], the recurrent one.
      bias: [H], added to the recurrent side of the last gate (the GRU's b_hn); None: there is none.
    """

    input_kernel: jax.Array
    input_bias: jax.Array
    kernel: jax.Array
    bias: jax.Array | None


class FusedCell(NamedTuple):
    """A cell as functions of blocks. h is its carry, or the last entry of it.

    Attributes:
      gates: their letters in the cell's parameters, in the order of the blocks.
      biased: "i" or "h": the side whose dense layers have the bias of the gates.
      forward: (a, q, carry) -> (carry, saved): one step, and what its gradient needs.
      backward: (d_carry, saved, carry before the step) -> (d_q, d_a[-1] where it is not d_q[-1],
        d_carry without what comes through q).
    """

    gates: tuple[str, ...]
    biased: str
    forward: Callable[[Blocks, Blocks, Any], tuple[Any, Blocks]]
    backward: Callable[[Any, Blocks, Any], tuple[Blocks, jax.Array | None, Any]]


def _gru_forward(a: Blocks, q: Blocks, h: jax.Array) -> tuple[jax.Array, Blocks]:
    r = jax.nn.sigmoid(a[0] + q[0])
    z = jax.nn.sigmoid(a[1] + q[1])
    n = jnp.tanh(a[2] + r * q[2])
    return (1 - z) * n + z * h, (r, z, n, q[2])


def _gru_backward(d_h: jax.Array, saved: Blocks, h: jax.Array) -> tuple[Blocks, Any, Any]:
    r, z, n, q_n = saved
    d_a_n = d_h * (1 - z) * (1 - n * n)  # the reset gate stands between a_n and q_n
    d_r = d_a_n * q_n * r * (1 - r)
    d_z = d_h * (h - n) * z * (1 - z)
    return (d_r, d_z, d_a_n * r), d_a_n, d_h * z


def _lstm_forward(a: Blocks, q: Blocks, carry: Any) -> tuple[Any, Blocks]:
    c, _ = carry
    i, f, o = (jax.nn.sigmoid(a[k] + q[k]) for k in (0, 1, 3))
    g = jnp.tanh(a[2] + q[2])
    c = f * c + i * g
    tanh_c = jnp.tanh(c)
    return (c, o * tanh_c), (i, f, g, o, tanh_c)


def _lstm_backward(d_carry: Any, saved: Blocks, carry: Any) -> tuple[Blocks, Any, Any]:
    (d_c, d_h), (i, f, g, o, tanh_c), (c, _) = d_carry, saved, carry
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i = d_c * g * i * (1 - i)
    d_f = d_c * c * f * (1 - f)
    d_g = d_c * i * (1 - g * g)
    d_o = d_h * tanh_c * o * (1 - o)
    return (d_i, d_f, d_g, d_o), None, (d_c * f, jnp.zeros_like(d_h))


def _rnn_forward(a: Blocks, q: Blocks, h: jax.Array) -> tuple[jax.Array, Blocks]:
    h = jnp.tanh(a[0] + q[0])
    return h, (h,)


def _rnn_backward(d_h: jax.Array, saved: Blocks, h: jax.Array) -> tuple[Blocks, Any, Any]:
    (new_h,) = saved
    return (d_h * (1 - new_h * new_h),), None, jnp.zeros_like(d_h)


FUSED_CELLS = {
    "gru": FusedCell(("r", "z", "n"), "i", _gru_forward, _gru_backward),
    "lstm": FusedCell(("i", "f", "g", "o"), "h", _lstm_forward, _lstm_backward),
    "rnn": FusedCell(("",), "i", _rnn_forward, _rnn_backward),
}

# --- over time ----------------------------------------------------------------------------------


def gather_weights(params: Any, cell: str) -> CellWeights:
    """Puts the parameters of a Flax cell side by side. params: as in `cells.CELLS[cell]`."""
    gates, side = FUSED_CELLS[cell].gates, FUSED_CELLS[cell].biased
    return CellWeights(
        jnp.concatenate([params["i" + gate]["kernel"] for gate in gates], axis=1),
        jnp.concatenate([params[side + gate]["bias"] for gate in gates]),
        jnp.concatenate([params["h" + gate]["kernel"] for gate in gates], axis=1),
        params["hn"]["bias"] if cell == "gru" else None,
    )


def run_fused(
    params: Any,
    carry: Any,
    inputs: jax.Array,
    *,
    cell: str,
    dtype: str = "float32",
    tokens: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    """One layer over time.

    Args:
      params: of the Flax cell.
      carry: of the cell, for B sequences.
      inputs: [B, T, E]; with `tokens` the table [V, E] of their embeddings.
      cell: name in `FUSED_CELLS`.
      dtype: "float32" or "bfloat16", of the operands of products.
      tokens: [B, T] ids.

    Returns:
      (carry, outputs [B, T, H]).
    """
    weights = gather_weights(params, cell)
    # A table with more rows than there are inputs would be more work than the inputs themselves.
    if tokens is not None and inputs.shape[0] > tokens.size:
        inputs, tokens = inputs[tokens], None
    a = product(inputs, weights.input_kernel, dtype=dtype)
    a += jnp.broadcast_to(weights.input_bias, a.shape)
    if tokens is None:
        table, xs = None, a.swapaxes(0, 1)  # [T, B, G H]
    else:
        table, xs = a, tokens.T  # [V, G H], [T, B]
    carry, outputs = _recurrence(cell, dtype, table, xs, carry, weights.kernel, weights.bias)
    return carry, outputs.swapaxes(0, 1)


def fused_step(
    cell: FusedCell,
    a: jax.Array,
    carry: Any,
    kernel: jax.Array,
    bias: jax.Array | None,
    transposed: bool = False,
) -> tuple[Any, Blocks]:
    """One step.

    Args:
      cell: its equations.
      a: [B, G H], the input side of the gates.
      carry: of the cell, for B sequences.
      kernel: [H, G H] in the dtype of the product's operands.
      bias: of `CellWeights`.
      transposed: the kernel is [G H, H].

    Returns:
      (carry, saved), see `FusedCell.forward`.
    """
    num_gates = len(cell.gates)
    h = output(carry)
    product_of_all = times_transposed(h, kernel) if transposed else dot(h, kernel, ((1,), (0,)))
    q = jnp.split(product_of_all, num_gates, axis=-1)
    if bias is not None:
        q[-1] = q[-1] + bias[None]
    return cell.forward(tuple(jnp.split(a, num_gates, axis=-1)), tuple(q), carry)


def _forward(
    name: str, dtype: str, table: Any, xs: jax.Array, carry: Any, kernel: jax.Array, bias: Any
) -> tuple[tuple[Any, jax.Array], Any]:
    """Returns ((carry, outputs [T, B, H]), (saved, carries before the steps) over time)."""
    kernel = kernel.astype(dtype)
    transposed = kernel.nbytes >= _LARGE_BYTES
    if transposed:
        kernel = lax.optimization_barrier(kernel.T)

    def step(carry: Any, x: jax.Array) -> tuple[Any, Any]:
        a = x if table is None else table[x]
        new_carry, saved = fused_step(FUSED_CELLS[name], a, carry, kernel, bias, transposed)
        return new_carry, (output(new_carry), saved, carry)

    carry, (outputs, *saved) = lax.scan(step, carry, xs)
    return (carry, outputs), saved


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(*args: Any) -> tuple[Any, jax.Array]:
    return _forward(*args)[0]


def _recurrence_fwd(name: str, dtype: str, *args: Any) -> tuple[tuple[Any, jax.Array], Any]:
    result, saved = _forward(name, dtype, *args)
    return result, (saved, *args)


def _recurrence_bwd(name: str, dtype: str, residuals: Any, gradients: Any) -> tuple[Any, ...]:
    (saved, carries), table, xs, _, kernel, bias = residuals
    d_carry, d_outputs = gradients
    cast_kernel = kernel.astype(dtype)

    def step(d_carry: Any, x: Any) -> tuple[Any, Any]:
        d_output, saved, carry = x
        d_carry = _add_to_h(d_carry, d_output)
        blocks, d_a_last, d_carry = FUSED_CELLS[name].backward(d_carry, saved, carry)
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
    """Adds d [T, B, N] up by token: [V, N]."""
    if num_rows > 256:
        return jnp.zeros((num_rows, d.shape[-1])).at[tokens].add(d)
    # On a CPU a product is faster than the scattered additions.
    return dot(jax.nn.one_hot(tokens, num_rows, dtype=d.dtype), d, ((0, 1), (0, 1)))


@jax.custom_jvp
def _to_bits(x: jax.Array) -> jax.Array:
    """bfloat16 as integers, to be stored inside a loop; float32 as it is.

    XLA's CPU code stores bfloat16 into an array of all steps by way of float32, value by value.
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


@_to_bits.defjvp
def _to_bits_jvp(primals: Any, tangents: Any) -> Any:
    if primals[0].dtype == jnp.bfloat16:
        raise NotImplementedError(
            "a gradient of a gradient needs a recurrence in float32, not in bfloat16"
        )
    return primals[0], tangents[0]


def _from_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.bfloat16) if bits.dtype == jnp.uint16 else bits


def output(carry: Any) -> jax.Array:
    """What the layer above reads: h [B, H]."""
    return carry[-1] if isinstance(carry, tuple) else carry


def _add_to_h(carry: Any, d_h: jax.Array) -> Any:
    return (*carry[:-1], carry[-1] + d_h) if isinstance(carry, tuple) else carry + d_h


# --- products -----------------------------------------------------------------------------------


def dot(
    a: jax.Array, b: jax.Array, contracting: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    """A product with float32 sums, whose left operand takes the type of the right one."""
    dimensions = (contracting, ((), ()))
    return lax.dot_general(a.astype(b.dtype), b, dimensions, preferred_element_type=jnp.float32)


def times_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, K] times the transpose of kernel [N, K]; operands of the kernel's type, float32 sums.

    XLA's product for CPUs rearranges its right operand at every call. Inside a loop that had better
    be the small x than the kernel: hence (kernel x^T)^T there.
    """
    x = x.astype(kernel.dtype)
    num_rows = x.shape[0] if isinstance(x.shape[0], int) else 2  # symbolic, in an export: any
    if num_rows < _FEW_ROWS[kernel.dtype.name]:
        return dot(x, kernel, ((1,), (1,)))
    return lax.platform_dependent(
        x,
        kernel,
        # The barrier keeps XLA from undoing the exchange.
        cpu=lambda x, kernel: lax.optimization_barrier(dot(kernel, x, ((1,), (1,)))).T,
        default=lambda x, kernel: dot(x, kernel, ((1,), (1,))),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, dtype: str) -> jax.Array:
    return dot(x, kernel.astype(dtype), ((x.ndim - 1,), (0,)))


def _product_fwd(x: jax.Array, kernel: jax.Array, dtype: str) -> tuple[jax.Array, Any]:
    return _product(x, kernel, dtype), (x.astype(dtype), kernel)


def _product_bwd(dtype: str, residuals: Any, d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    d_y, rows = d_y.astype(dtype), tuple(range(x.ndim - 1))
    return dot(d_y, kernel.astype(dtype), ((x.ndim - 1,), (1,))), dot(x, d_y, (rows, rows))


_product.defvjp(_product_fwd, _product_bwd)


def product(x: jax.Array, kernel: jax.Array, *, dtype: str) -> jax.Array:
    """x [..., K] times kernel [K, N]: operands rounded to `dtype`, sums in float32, both ways."""
    if dtype == "float32":  # autodiff does the same, and in every mode
        return dot(x, kernel, ((x.ndim - 1,), (0,)))
    return _product(x, kernel, dtype)


@cache
def can_train_in_bfloat16() -> bool:
    """Whether this JAX can: jaxlib 0.7 lacks a product of the backward pass on some CPUs."""
    inputs, kernel = jnp.ones((4, 7, 6)), jnp.ones((6, 24))
    gradient = jax.grad(lambda *operands: product(*operands, dtype="bfloat16").sum(), (0, 1))
    try:
        jax.device_get(jax.jit(gradient)(inputs, kernel))
    except RuntimeError:
        return False
    return True
