"""Matrix products whose operands are rounded to a dtype and whose sums are float32."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Fewer rows than this: exchanging the operands costs more than it saves, by measurement on CPUs.
_FEW_ROWS = {"float32": 2, "bfloat16": 16}


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
