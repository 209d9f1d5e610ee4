"""Matrix products whose operands are rounded to a dtype and whose sums are float32."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# With fewer rows, exchanging the operands costs more than it saves, as measured on CPUs.
_FEW_ROWS = {"float32": 2, "bfloat16": 16}


def dot(
    a: jax.Array, b: jax.Array, contracting: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
    """Returns a product with float32 sums; the left operand is cast to the type of the right one.

    Args:
      a: left operand.
      b: right operand.
      contracting: axes of a and axes of b to sum over.
    """
    dimensions = (contracting, ((), ()))
    return lax.dot_general(a.astype(b.dtype), b, dimensions, preferred_element_type=jnp.float32)


def times_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x [B, K] times the transpose of kernel [N, K]; operands as the kernel, float32 sums.

    On CPUs, XLA's product rearranges its right operand at every call. Inside a loop it is cheaper
    to rearrange the small x than the kernel, so there the product is (kernel x^T)^T.
    """
    x = x.astype(kernel.dtype)
    num_rows = x.shape[0] if isinstance(x.shape[0], int) else 2  # symbolic in an export: many
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
def reverse_product(x: jax.Array, kernel: jax.Array, dtype: str) -> jax.Array:
    """Returns the same as `product`, without a forward mode.

    On CPUs, XLA computes the gradient x^T d_y of the kernel, of x [T, B, K] and d_y [T, B, N], much
    faster than autodiff's (d_y^T x)^T, for which it transposes d_y in memory.
    """
    return dot(x, kernel.astype(dtype), ((x.ndim - 1,), (0,)))


def _product_fwd(x: jax.Array, kernel: jax.Array, dtype: str) -> tuple[jax.Array, Any]:
    return reverse_product(x, kernel, dtype), (x.astype(dtype), kernel)


def _product_bwd(dtype: str, residuals: Any, d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    d_y, rows = d_y.astype(dtype), tuple(range(x.ndim - 1))
    d_x = dot(d_y, kernel.astype(dtype), ((x.ndim - 1,), (1,)))
    # The barrier keeps XLA from joining the product and a transposition after it, as where the
    # kernel is another's transpose: its code for CPUs has no such product of bfloat16.
    return d_x, lax.optimization_barrier(dot(x, d_y, (rows, rows)))


reverse_product.defvjp(_product_fwd, _product_bwd)


def product(x: jax.Array, kernel: jax.Array, *, dtype: str) -> jax.Array:
    """Returns x [..., K] times kernel [K, N], with operands rounded to `dtype` and float32 sums.

    The products of the backward pass are computed in the same way.
    """
    if dtype == "float32":  # autodiff gives the same gradient, and also has a forward mode
        return dot(x, kernel, ((x.ndim - 1,), (0,)))
    return reverse_product(x, kernel, dtype)


@cache
def can_train_in_bfloat16() -> bool:
    """Returns whether this JAX can train in bfloat16.

    On some CPUs, jaxlib 0.7 lacks a product of the backward pass.
    """
    inputs, kernel = jnp.ones((4, 7, 6)), jnp.ones((6, 24))
    gradient = jax.grad(lambda *operands: product(*operands, dtype="bfloat16").sum(), (0, 1))
    try:
        jax.device_get(jax.jit(gradient)(inputs, kernel))
    except RuntimeError:
        return False
    return True
