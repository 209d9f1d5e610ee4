"""`config.optimizer` -> learning-rate schedule and Optax chain."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict, *, num_steps: int, peak: Any = None) -> optax.Schedule:
    """Linear warm-up to the peak, then constant, linear or cosine to the last step.

    Args:
      config: the `optimizer` section.
      num_steps: of the whole training.
      peak: learning rate instead of the config's; may be a traced number.

    Returns:
      step -> learning rate.
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
    # Step 0 already learns: a warm-up that starts at exactly 0 would waste it.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1 or 1)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: ConfigDict, *, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """Clip by the global norm, precondition, decay weights, scale by the learning rate.

    Weight decay acts on matrices, not on biases. For "adamw" it is decoupled (added behind the
    preconditioner), for the others it is the gradient of weight_decay / 2 * |w|^2.

    Returns:
      The transformation. Its `update` also takes learning_rate (the peak) and weight_decay as
      numbers that may be traced, in place of the config's; whether weights decay at all stays.

    Source: Adam, arXiv:1412.6980; AdamW, arXiv:1711.05101; clipping, arXiv:1211.5063.
    """
    precondition = {
        "adam": lambda: optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        "adamw": lambda: optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        "rmsprop": lambda: optax.scale_by_rms(config.rms_decay, config.epsilon, eps_in_sqrt=False),
        "sgd": lambda: optax.trace(config.momentum) if config.momentum else optax.identity(),
    }[config.name]()
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()

    def chain(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        schedule = make_schedule(config, num_steps=num_steps, peak=learning_rate)
        learn = optax.scale_by_learning_rate(schedule)
        decay = (
            optax.add_decayed_weights(weight_decay, mask=_is_matrix)
            if config.weight_decay
            else optax.identity()
        )
        if config.name == "adamw":
            return optax.chain(clip, precondition, decay, learn)
        return optax.chain(clip, decay, precondition, learn)

    peak, rate = config.learning_rate, config.weight_decay

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        learning_rate: Any = peak,
        weight_decay: Any = rate,
    ) -> tuple[optax.Updates, optax.OptState]:
        return chain(learning_rate, weight_decay).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(chain(peak, rate).init, update)


def _is_matrix(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda param: param.ndim > 1, params)
