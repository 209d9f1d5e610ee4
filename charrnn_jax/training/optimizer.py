"""The learning-rate schedule and the Optax optimizer of a config.

An optimizer is a function (config, learning_rate=, weight_decay=) that returns Optax
transformations in order. learning_rate is a schedule, and weight_decay a number that may be traced.
"""

from collections.abc import Sequence

import jax
import optax
from ml_collections import ConfigDict

from charrnn_jax.registry import OPTIMIZERS

Transformations = Sequence[optax.GradientTransformation]
Number = float | jax.Array  # an array if it is traced


def make_schedule(
    config: ConfigDict, *, num_steps: int, peak: Number | None = None
) -> optax.Schedule:
    """Linear warm-up to the peak, then constant, or linear or cosine decay until the last step.

    Args:
      config: the `config.optimizer` section.
      num_steps: number of steps of the whole training.
      peak: peak learning rate, which may be traced; None: the config's.

    Returns:
      Function from the step to the learning rate.
    """
    peak = config.learning_rate if peak is None else peak
    final, decay_steps = peak * config.final_fraction, max(num_steps - config.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction),
    }[config.schedule]()
    if not config.warmup_steps:
        return after
    # A warm-up that starts at exactly 0 would waste step 0.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1 or 1)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: ConfigDict, *, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer that a config names, with clipping by the global norm before it.

    Args:
      config: the `config.optimizer` section.
      num_steps: number of steps of the whole training, for the schedule.

    Returns:
      The transformation. Its `update` also takes learning_rate (the peak) and weight_decay, which
      may be traced, in place of the config's. Whether there is weight decay at all depends on the
      config.

    Source: clipping, Pascanu et al. 2013 (arXiv:1211.5063).
    """
    make = OPTIMIZERS[config.name]
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()

    def chain(learning_rate: Number, weight_decay: Number) -> optax.GradientTransformation:
        schedule = make_schedule(config, num_steps=num_steps, peak=learning_rate)
        return optax.chain(clip, *make(config, learning_rate=schedule, weight_decay=weight_decay))

    peak, rate = config.learning_rate, config.weight_decay

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        learning_rate: Number = peak,
        weight_decay: Number = rate,
    ) -> tuple[optax.Updates, optax.OptState]:
        return chain(learning_rate, weight_decay).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(chain(peak, rate).init, update)


# Weight decay acts on matrices, not on biases. In AdamW it is decoupled, and comes after the
# preconditioner; otherwise it is the gradient of weight_decay / 2 * |w|^2.


def adam(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """Adam, Kingma & Ba 2014 (arXiv:1412.6980)."""
    return [_decay(config, weight_decay), _scale_by_adam(config), _learn(learning_rate)]


def adamw(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """Adam with decoupled weight decay, Loshchilov & Hutter 2017 (arXiv:1711.05101)."""
    return [_scale_by_adam(config), _decay(config, weight_decay), _learn(learning_rate)]


def rmsprop(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """RMSprop, Hinton 2012, with epsilon outside the root, as in Keras."""
    precondition = optax.scale_by_rms(config.rms_decay, config.epsilon, eps_in_sqrt=False)
    return [_decay(config, weight_decay), precondition, _learn(learning_rate)]


def sgd(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """Gradient descent, with momentum if it is not 0."""
    trace = optax.trace(config.momentum) if config.momentum else optax.identity()
    return [_decay(config, weight_decay), trace, _learn(learning_rate)]


def _scale_by_adam(config: ConfigDict) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)


def _decay(config: ConfigDict, weight_decay: Number) -> optax.GradientTransformation:
    if not config.weight_decay:  # whether there is weight decay is never traced
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask=is_matrix)


def _learn(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.scale_by_learning_rate(learning_rate)


def is_matrix(params: optax.Params) -> optax.Params:
    """Returns whether each parameter is a matrix, as the mask of weight decay."""
    return jax.tree.map(lambda param: param.ndim > 1, params)


for _make in (adam, adamw, rmsprop, sgd):
    OPTIMIZERS.provide(_make.__name__, _make)
