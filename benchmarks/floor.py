"""The floor: only the matrix products that a workload cannot do without, in XLA."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workloads import Workload

_MOST_REPEATS = 100  # repeats of a product in one loop on the device


def floor_seconds(workload: Workload) -> float:
    """Returns the seconds that the products of a workload take.

    Every product is timed in its fastest arrangement: each operand may be stored transposed, and
    the two may be exchanged. Products of every step are timed in a loop on the device, because a
    call would take longer than a small product.
    """
    return sum(
        count
        * min(
            _product_seconds(*sizes, transposed, min(count, _MOST_REPEATS), workload.dtype)
            for sizes in ((m, k, n), (n, k, m))
            for transposed in ((False, False), (False, True), (True, False), (True, True))
        )
        for count, m, k, n in workload.products
    )


def _product_seconds(
    m: int, k: int, n: int, transposed: tuple[bool, bool], repeats: int, dtype: str
) -> float:
    """Returns the median time of [M, K] @ [K, N] over three runs, after two runs to warm up."""
    contracting = ((0 if transposed[0] else 1,), (1 if transposed[1] else 0,))

    def dot(a: Any, b: Any) -> Any:
        dims = (contracting, ((), ()))
        return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)

    def in_a_loop(a: Any, b: Any) -> Any:
        def body(a: Any, _: None) -> Any:
            return a + (0 * dot(a, b)[:1, :1]).astype(a.dtype), None

        return jax.lax.scan(body, a, length=repeats)[0]

    a = jnp.ones((k, m) if transposed[0] else (m, k), dtype)
    b = jnp.ones((n, k) if transposed[1] else (k, n), dtype)
    jitted = jax.jit(dot if repeats == 1 else in_a_loop)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(jitted(a, b))
        seconds.append((time.perf_counter() - start) / repeats)
    return float(np.median(seconds[2:]))
