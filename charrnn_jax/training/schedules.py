"""Learning-rate schedules: warm-up, then constant or one of three decays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from ml_collections import ConfigDict

Number = float | np.float32 | jax.Array  # an array if it is traced
RateAt = Callable[[int, float | None], float]  # (step, progress) -> learning rate


def make_schedule(
    config: ConfigDict,
    *,
    num_steps: int,
    peak: Number | None = None,
    progress: Number | None = None,
) -> optax.Schedule:
    """Linear warm-up to the peak, then constant, or linear, cosine or WSD decay until the end.

    Usually, training ends after `num_steps` steps, and the decay is a function of the step. If
    training may end earlier, because its time is over, the decay is a function of `progress`, and
    the rate is the smaller one of warm-up and decay.

    Args:
      config: the `config.optimizer` section.
      num_steps: number of steps of the whole training.
      peak: peak learning rate, which may be traced; None: the config's.
      progress: share of the training that is over, from 0 to 1, which may be traced; None: the
        step alone says how much is over.

    Returns:
      Function from the step to the learning rate.
    """
    peak = config.learning_rate if peak is None else peak
    if isinstance(peak, float):
        # In float32 and without a division, rates are the same numbers as if the peak were traced.
        peak = np.float32(peak)
    if progress is None:
        decay = _make_decay(
            config, peak, num_steps - config.warmup_steps, config.decay_fraction * num_steps
        )
    else:
        decay = _make_decay(config, peak, 1, config.decay_fraction)
    if not config.warmup_steps:
        return decay if progress is None else lambda step: decay(progress)
    # A warm-up that starts at exactly 0 would waste step 0.
    first = peak * (1 / config.warmup_steps)
    warmup = optax.linear_schedule(first, peak, config.warmup_steps - 1 or 1)
    if progress is None:
        return optax.join_schedules([warmup, decay], [config.warmup_steps])
    return lambda step: jnp.minimum(warmup(step), decay(progress))


def make_rate_at(config: ConfigDict, *, num_steps: int) -> RateAt:
    """Returns the schedule as a function of the step and the progress; see `make_schedule`.

    Args:
      config: the `config.optimizer` section.
      num_steps: number of steps of the whole training.
    """

    def rate_at(step: int, progress: float | None) -> float:
        schedule = make_schedule(config, num_steps=num_steps, progress=progress)
        return float(jnp.asarray(schedule(step)))

    return rate_at


def _make_decay(
    config: ConfigDict, peak: Number, length: int, cooldown: float
) -> Callable[[ArrayLike], jax.Array]:
    """Returns the rate as a function of the position in the training after warm-up.

    Args:
      config: the `config.optimizer` section.
      peak: rate at position 0.
      length: last position.
      cooldown: distance from the end at which the schedule "wsd" starts to decay.
    """
    length, final = max(length, 1), peak * config.final_fraction
    return {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, length),
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, config.final_fraction),
        "wsd": lambda: _wsd(peak, final, length, min(cooldown, length)),
    }[config.schedule]()


def _wsd(
    peak: Number, final: Number, length: int, cooldown: float
) -> Callable[[ArrayLike], jax.Array]:
    """Warm-up, stable, decay: constant, then down with 1 - sqrt(share of the decay that is over).

    Source: Hu et al. 2024 (arXiv:2404.06395); the shape of the decay, which ends at a lower loss
    than a linear one, Hägele et al. 2024 (arXiv:2405.18392), section 4.
    """

    def rate(position: ArrayLike) -> jax.Array:
        over = jnp.clip((position - (length - cooldown)) / cooldown, 0.0, 1.0)
        return peak - (peak - final) * jnp.sqrt(over)

    return rate
