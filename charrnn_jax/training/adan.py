"""Adan: Adam with a Nesterov momentum that is estimated from differences of gradients.

Optax has it, too, but up to 0.2.8 with 1 - b2 = 0.08 where the paper has 0.92, so that the
differences hardly count (github.com/google-deepmind/optax/pull/1715).

Source: Xie et al. 2022 (arXiv:2208.06677), algorithm 1, with the constants and the bias correction
of the authors' code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

_B1, _B2, _B3 = 0.98, 0.92, 0.99  # 1 - beta of the paper
_EPSILON = 1e-8


class AdanState(NamedTuple):
    """State of `scale_by_adan`.

    Attributes:
      num_updates: number of updates done.
      gradient: last gradient.
      mean: mean gradient, m.
      difference: mean difference of two gradients in a row, v.
      square: mean square of the gradient that is expected next, n.
    """

    num_updates: jax.Array
    gradient: optax.Updates
    mean: optax.Updates
    difference: optax.Updates
    square: optax.Updates


def scale_by_adan() -> optax.GradientTransformation:
    """Replaces the gradient g by Adan's direction.

      d  = g - last g, or 0 in the first step
      m' = b1 m + (1 - b1) g
      v' = b2 v + (1 - b2) d
      n' = b3 n + (1 - b3) (g + b2 d)^2
      u  = (m' + b2 v') / (sqrt(n') + 1e-8), with m', v' and n' corrected for their zero start

    b1 = 0.98, b2 = 0.92, b3 = 0.99.
    """

    def init(params: optax.Params) -> AdanState:
        zeros = [optax.tree.zeros_like(params) for _ in range(4)]
        return AdanState(jnp.zeros((), jnp.int32), *zeros)

    def update(
        updates: optax.Updates, state: AdanState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdanState]:
        count = optax.safe_increment(state.num_updates)
        d = jax.tree.map(
            lambda g, last: jnp.where(state.num_updates == 0, 0.0, g - last),
            updates,
            state.gradient,
        )
        expected = jax.tree.map(lambda g, d: g + _B2 * d, updates, d)
        m = optax.tree.update_moment(updates, state.mean, _B1, 1)
        v = optax.tree.update_moment(d, state.difference, _B2, 1)
        n = optax.tree.update_moment(expected, state.square, _B3, 2)
        direction = jax.tree.map(
            lambda m, v, n: (m + _B2 * v) / (jnp.sqrt(n) + _EPSILON),
            optax.tree.bias_correction(m, _B1, count),
            optax.tree.bias_correction(v, _B2, count),
            optax.tree.bias_correction(n, _B3, count),
        )
        return direction, AdanState(count, updates, m, v, n)

    return optax.GradientTransformation(init, update)
