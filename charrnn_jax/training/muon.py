"""Muon: momentum whose matrices are made orthogonal, each gate of a cell by itself.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon), with Nesterov momentum of 0.95 and five Newton-Schulz steps;
the scale of the update, Liu et al. 2025 (arXiv:2502.16982), section 2.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_MOMENTUM = 0.95
_NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
_NUM_NEWTON_SCHULZ = 5
_EPSILON = 1e-8


class MuonState(NamedTuple):
    """State of `scale_by_muon`.

    Attributes:
      num_updates: number of updates done.
      momentum: mean gradient.
    """

    num_updates: jax.Array
    momentum: optax.Updates


def scale_by_muon(*, ratio: float, hidden_size: int | None) -> optax.GradientTransformation:
    """Replaces the gradient G of each matrix by its momentum, made orthogonal.

      M' = 0.95 M + 0.05 G
      N  = 0.95 M' + 0.05 G, both corrected for the zero start of M, as in Optax
      U  = ratio * sqrt(max(rows, columns)) * orthogonalize(N)

    The root mean square of U is about `ratio`, whatever the shape.

    Args:
      ratio: root mean square of an update before the learning rate. That of AdamW is 0.2 to 0.4,
        so with 0.2 both can have the same learning rate.
      hidden_size: H; a kernel of several times H columns has several gates side by side, which are
        made orthogonal one by one. None: each kernel is a whole.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        count = optax.safe_increment(state.num_updates)
        momentum = optax.tree.update_moment(updates, state.momentum, _MOMENTUM, 1)
        nesterov = jax.tree.map(
            lambda m, g: _MOMENTUM * m + (1 - _MOMENTUM) * g,
            optax.tree.bias_correction(momentum, _MOMENTUM, optax.safe_increment(count)),
            optax.tree.bias_correction(updates, _MOMENTUM, count),
        )
        updates = jax.tree.map(lambda n: ratio * _by_gate(n, hidden_size), nesterov)
        return updates, MuonState(count, momentum)

    return optax.GradientTransformation(init, update)


def _by_gate(matrix: jax.Array, hidden_size: int | None) -> jax.Array:
    columns = matrix.shape[1]
    num_gates = columns // hidden_size if hidden_size and columns % hidden_size == 0 else 1
    gates = jnp.split(matrix, num_gates, axis=1)
    return jnp.concatenate([max(g.shape) ** 0.5 * orthogonalize(g) for g in gates], axis=1)


def orthogonalize(matrix: jax.Array) -> jax.Array:
    """Returns a matrix with about the same singular vectors, and singular values near 1.

    If G = U S V^T, the result is U S' V^T with S' between about 0.7 and 1.2.

    Args:
      matrix: [rows, columns].
    """
    x = matrix / (jnp.linalg.norm(matrix) + _EPSILON)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NUM_NEWTON_SCHULZ):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def is_cell_kernel(params: optax.Params) -> Any:
    """Returns whether each parameter is a kernel of a recurrent layer, which Muon is for."""

    def is_kernel(path: tuple[Any, ...], param: jax.Array) -> bool:
        names = [getattr(entry, "key", None) for entry in path]
        return "cell" in names and names[-1] == "kernel" and param.ndim == 2

    return jax.tree_util.tree_map_with_path(is_kernel, params)
