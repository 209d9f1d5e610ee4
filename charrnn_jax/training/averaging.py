"""Averages of the weights over training steps, evaluated in place of the weights themselves.

An average is less noisy than the weights after any one step, as if the learning rate had decayed,
and does not change how the weights are trained. After each step

  average' = (1 - share) average + share params

where the first average is the initial parameters, and the share depends on the kind of average.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from charrnn_jax.data.batches import Batch
from charrnn_jax.models.char_rnn import Params
from charrnn_jax.training.train_step import Average, TracedHyperparameters, TrainState, TrainStep


def start_average(state: TrainState) -> TrainState:
    """Returns the state before the first step with an average of its parameters."""
    params = jax.tree.map(jnp.array, state.params)  # copies, since the state is donated
    return replace(state, average=Average(params, jnp.zeros((), jnp.int32)))


def average_weights(train_step: TrainStep, *, config: ConfigDict, num_steps: int) -> TrainStep:
    """Returns a train step that also updates the average of the weights, if the state has one.

    Args:
      train_step: (state, batch, maybe hyper=) -> (state, metrics).
      config: the `config.train` section.
      num_steps: number of steps of the whole training.
    """

    def averaged(
        state: TrainState, batch: Batch, **arguments: TracedHyperparameters
    ) -> tuple[TrainState, dict[str, Any]]:
        new_state, metrics = train_step(state, batch, **arguments)
        if (average := state.average) is None:
            return new_state, metrics
        hyper = arguments.get("hyper") or TracedHyperparameters()
        if config.averaging == "ema":
            decay = jnp.float32(hyper.averaging.get("ema_decay", config.ema_decay))
            average = ema(average, new_state.params, decay=decay)
        else:
            fraction = jnp.float32(hyper.averaging.get("tail_fraction", config.tail_fraction))
            progress = hyper.optimizer.get("progress")
            if progress is None:
                num_steps_in_tail = jnp.round(fraction * num_steps).astype(jnp.int32)
                in_tail = new_state.step > num_steps - num_steps_in_tail
            else:  # training may end by the clock
                in_tail = progress >= 1 - fraction
            average = tail(average, new_state.params, in_tail=in_tail)
        return replace(new_state, average=average), metrics

    return averaged


def ema(average: Average, params: Params, *, decay: jax.Array) -> Average:
    """Exponential moving average, whose decay grows to its value in the first steps.

      share = 1 - min(decay, (1 + n) / (10 + n)), after n steps

    so that the initial parameters are soon forgotten.

    Source: Polyak & Juditsky 1992 for averaging; the decay of the first steps is that of
    `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    n = average.count
    share = 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    return Average(optax.incremental_update(params, average.params, share), n + 1)


def tail(average: Average, params: Params, *, in_tail: jax.Array) -> Average:
    """Mean of the weights after each step of the tail; before the tail, the weights themselves.

      share = 1 / n for the n-th step of the tail, and 1 before it

    Source: Polyak & Juditsky 1992; at the end of training, stochastic weight averaging, Izmailov et
    al. 2018 (arXiv:1803.05407), and ASGD of the AWD-LSTM, Merity et al. 2017 (arXiv:1708.02182).
    """
    count = jnp.where(in_tail, average.count + 1, 0)
    share = 1 / jnp.maximum(count, 1)
    return Average(optax.incremental_update(params, average.params, share), count)
