"""Schedule-Free AdamW: weights that are averaged while they are trained, instead of a decay.

Three sequences of weights are involved: z, which AdamW without momentum moves; x, the average of z,
which is evaluated; and y between them, where the gradient is taken. `TrainState.params` are y.

Source: Defazio et al. 2024 (arXiv:2405.15682), algorithm 1, as `optax.contrib.schedule_free`.
"""

import jax
import optax
import optax.contrib


def average_iterates(
    base: optax.GradientTransformation, *, learning_rate: optax.Schedule, beta: float
) -> optax.GradientTransformation:
    """Averages the weights z that an optimizer without momentum moves.

      z' = z + the update of `base` at y
      x' = (1 - c) x + c z', with c = w / (sum of all w), w = (largest rate so far)^2
      y' = beta x' + (1 - beta) z'

    Args:
      base: the optimizer, including its learning rate.
      learning_rate: the schedule, for the weights of the average.
      beta: share of x in y; above 0.
    """
    # Optax counts these steps from 1, and those of the base from 0.
    return optax.contrib.schedule_free(base, lambda step: learning_rate(step - 1), b1=beta)


def averaged_weights(params: optax.Params, opt_state: optax.OptState) -> optax.Params:
    """Returns x, or the parameters themselves if another optimizer trains them.

    Args:
      params: the trained parameters, which are y.
      opt_state: state of their optimizer.
    """
    for state in jax.tree.leaves(opt_state, is_leaf=_is_schedule_free):
        if _is_schedule_free(state):
            return _averaged(state, params)
    return params


_averaged = jax.jit(optax.contrib.schedule_free_eval_params)


def _is_schedule_free(node: object) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)
