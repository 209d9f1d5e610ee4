"""The Optax optimizer of a config.

An optimizer is a function (config, learning_rate=, weight_decay=) that returns Optax
transformations in order. learning_rate is a schedule, and weight_decay a number that may be traced.
"""

import operator
from collections.abc import Sequence
from functools import partial

import jax
import optax
from ml_collections import ConfigDict

from charrnn_jax.errors import UserError
from charrnn_jax.registry import OPTIMIZERS
from charrnn_jax.training.adan import scale_by_adan
from charrnn_jax.training.muon import is_cell_kernel, scale_by_muon
from charrnn_jax.training.schedule_free import average_iterates
from charrnn_jax.training.schedules import Number, make_schedule

Transformations = Sequence[optax.GradientTransformation]


def make_optimizer(
    config: ConfigDict, *, num_steps: int, hidden_size: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer that a config names, with clipping by the global norm before it.

    Args:
      config: the `config.optimizer` section.
      num_steps: number of steps of the whole training, for the schedule.
      hidden_size: H, units of each recurrent layer, by which "muon" tells gates apart; None: it
        takes each kernel as a whole.

    Returns:
      The transformation. Its `update` also takes learning_rate (the peak) and weight_decay, which
      may be traced, in place of the config's, and progress, see `make_schedule`. Whether there is
      weight decay at all depends on the config.

    Source: clipping, Pascanu et al. 2013 (arXiv:1211.5063).
    """
    make = OPTIMIZERS[config.name]
    if make is muon:
        make = partial(muon, hidden_size=hidden_size)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()

    def chain(
        learning_rate: Number, weight_decay: Number, progress: Number | None = None
    ) -> optax.GradientTransformation:
        schedule = make_schedule(config, num_steps=num_steps, peak=learning_rate, progress=progress)
        return optax.chain(clip, *make(config, learning_rate=schedule, weight_decay=weight_decay))

    peak, rate = config.learning_rate, config.weight_decay

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        learning_rate: Number = peak,
        weight_decay: Number = rate,
        progress: Number | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        return chain(learning_rate, weight_decay, progress).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(chain(peak, rate).init, update)


# Weight decay acts on matrices, not on biases. In adam, rmsprop and sgd it is the gradient of
# weight_decay / 2 * |w|^2; in the others it is decoupled, and comes after the preconditioner.


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


def lion(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """The sign of a momentum, Chen et al. 2023 (arXiv:2302.06675), with b1 = 0.9 and b2 = 0.99.

    Its learning rate should be 3 to 10 times smaller than that of AdamW, and its weight decay
    larger by the same factor.
    """
    return [optax.scale_by_lion(0.9, 0.99), _decay(config, weight_decay), _learn(learning_rate)]


def adan(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """Adam with an estimated Nesterov momentum; see `adan`."""
    return [scale_by_adan(), _decay(config, weight_decay), _learn(learning_rate)]


def muon(
    config: ConfigDict,
    *,
    learning_rate: optax.Schedule,
    weight_decay: Number,
    hidden_size: int | None = None,
) -> Transformations:
    """Muon for the kernels of recurrent layers, AdamW for all else; see `muon`."""

    def is_other(params: optax.Params) -> optax.Params:
        return jax.tree.map(operator.not_, is_cell_kernel(params))

    orthogonal = scale_by_muon(ratio=config.muon_ratio, hidden_size=hidden_size)
    return [
        optax.masked(orthogonal, is_cell_kernel),
        optax.masked(_scale_by_adam(config), is_other),
        _decay(config, weight_decay),
        _learn(learning_rate),
    ]


def schedule_free(
    config: ConfigDict, *, learning_rate: optax.Schedule, weight_decay: Number
) -> Transformations:
    """Schedule-Free AdamW; see `schedule_free`. The schedule should be constant, after a warm-up.

    beta1 is the share of the average in the weights at which the gradient is taken.
    """
    if not config.beta1:
        raise UserError("config.optimizer.beta1 is 0; for schedule_free it must be above 0")
    adamw_without_momentum = optax.chain(
        optax.scale_by_rms(config.beta2, config.epsilon, eps_in_sqrt=False, bias_correction=True),
        _decay(config, weight_decay),
        _learn(learning_rate),
    )
    return [
        average_iterates(adamw_without_momentum, learning_rate=learning_rate, beta=config.beta1)
    ]


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


for _make in (adam, adamw, rmsprop, sgd, lion, adan, muon, schedule_free):
    OPTIMIZERS.provide(_make.__name__, _make)
