"""`train`: from a config and a workdir to a trained model.

The loop starts the next call of the device, with one or several steps, before it reads the metrics
of the last one, so the device never waits for the host. After any interruption, training resumes in
the same workdir and ends with the parameters, optimizer state, carry and metrics of an
uninterrupted run, bit for bit.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.config import validate
from charrnn_jax.data.batches import prefetch
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.messages import PROGRESS
from charrnn_jax.models.char_rnn import summary
from charrnn_jax.processes import say_once
from charrnn_jax.registry import LOSSES, TRAIN_STEPS
from charrnn_jax.training.averaging import average_weights
from charrnn_jax.training.devices import Agreement, place_rows, shape_of_batch
from charrnn_jax.training.dispatch import put_on_device
from charrnn_jax.training.hooks import Hook
from charrnn_jax.training.in_progress import start_training
from charrnn_jax.training.interrupt import InterruptRequest
from charrnn_jax.training.phases import COMPILATION, INPUT, STEP, in_phase, phase
from charrnn_jax.training.setup import Setup, check_hooks, make_setup
from charrnn_jax.training.sharing import compile_for, share_among_cores
from charrnn_jax.training.train_step import (
    LossFn,
    TracedHyperparameters,
    TrainState,
    TrainStep,
)
from charrnn_jax.workdir.resume import locked_for_training


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    train_step: TrainStep | None = None,
    loss_fn: LossFn | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainState:
    """Trains a model, or resumes the run in `workdir`.

    Args:
      config: config of the run, see `default_config`.
      workdir: folder of the run; created if it is missing.
      train_step: your own train step, instead of the one that `config.train.step` names: a pure
        function (state, batch) -> (state, metrics) that increases state.step by one and returns
        "loss" as a `CrossEntropy`. It is jitted here, with the state donated.
      loss_fn: your own loss, instead of the one that `config.train.loss` names: (logits [B, T, V],
        targets [B, T]) -> losses [B, T]. Validation always uses the cross-entropy.
      hooks: your own hooks, called last: (step, state, metrics) every `every_steps` steps and after
        the last step; context managers are entered before the first. See `training.hooks`.

    Returns:
      The state after the last step.

    Raises:
      UserError: the config, text or workdir cannot be used; nothing was written.
      TrainingError: the loss is not finite, or a checkpoint could not be written.
      Interrupted: there was a signal; the state is saved.
    """
    validate(config)
    check_hooks(hooks)
    step_fn, is_standard = choose_train_step(config, train_step=train_step, loss_fn=loss_fn)
    if config.train.max_seconds:
        _check_takes_progress(step_fn)
    workdir = Path(workdir)
    step_fn = jax.jit(step_fn)  # jitted by itself, so that it is traced only once
    with locked_for_training(workdir, text=config.data.path):
        setup = make_setup(config, workdir)
        _check_train_step(step_fn, setup)
        if setup.resumes:
            say_once(setup.dataset.headline())
        else:
            say_once(f"{setup.dataset.describe()}\n{summary(setup.state.model)}")
        first_progress = _as_argument(0.0 if config.train.max_seconds else None)
        averaged = average_weights(step_fn, config=config.train, num_steps=setup.num_steps)
        setup, run_steps = share_among_cores(setup, averaged, *first_progress)
        programs = {config.data.sequence_length: run_steps}
        PROGRESS.debug(
            f"{setup.mesh.size} device(s) of kind {jax.devices()[0].device_kind!r}, "
            f"{setup.steps_per_call} steps a call, {setup.batches.steps_per_epoch} an epoch"
        )
        agree, agree_on_time = Agreement(setup.mesh), Agreement(setup.mesh)
        with (
            InterruptRequest() as interrupt,
            start_training(setup, hooks=hooks, checks_initial_loss=is_standard) as training,
        ):
            state = training.state
            tokens = put_on_device(setup.dataset.splits["train"], setup.mesh)
            queue = training.calls(on_device=tokens is not None)
            progress, time_is_over, length = training.first_progress(), False, 0
            placed = prefetch(queue, lambda c: (c, place_rows(c.where, setup.mesh)))
            for call, where in in_phase(INPUT, placed):
                if is_new := call.sequence_length != length:  # they only grow
                    length = call.sequence_length
                    if length not in programs:
                        programs[length] = compile_for(setup, averaged, sequence_length=length)
                arguments = tokens, where, np.int32(call.num_steps), *_as_argument(progress)
                with phase(COMPILATION if is_new else STEP) as finished:
                    state, metrics = finished(programs[length](state, *arguments))
                training.recorder.add(
                    call.stop, metrics, count=call.num_steps, progress=progress, compiles=is_new
                )
                signal_number = agree(interrupt.signal_number or 0) or None
                if progress is not None:
                    part = agree_on_time(int(training.fraction_of_time(call.stop) * _MILLION))
                    time_is_over = part >= _MILLION
                    progress = max(part / _MILLION, call.stop / setup.num_steps)
                if training.is_due(call.stop) or signal_number or time_is_over:
                    training.call_hooks(
                        state, call.stop, signal_number=signal_number, time_is_over=time_is_over
                    )
                if time_is_over or training.stops_early:
                    break
        return state


def _as_argument(progress: float | None) -> tuple[TracedHyperparameters, ...]:
    """Returns the progress as the last argument of the compiled program, if there is one."""
    if progress is None:
        return ()
    return (TracedHyperparameters(optimizer={"progress": np.float32(progress)}),)


def _check_takes_progress(train_step: TrainStep) -> None:
    """Raises UserError if a train step would ignore how much of its time is over."""
    if "hyper" not in inspect.signature(train_step).parameters:
        raise UserError(
            "config.train.max_seconds is set, and your own train step has no argument hyper, "
            "which says how much of the time is over: add it, and give it to "
            "charrnn_jax.train_step, or set --config.train.max_seconds=0"
        )


def choose_train_step(
    config: ConfigDict, *, train_step: TrainStep | None = None, loss_fn: LossFn | None = None
) -> tuple[TrainStep, bool]:
    """Returns (train step with its loss, whether both are the standard ones).

    Args:
      config: config of the run.
      train_step: your own train step; None: the config's.
      loss_fn: your own loss; None: the config's.

    Raises:
      UserError: there are both your own step and your own loss, which the step would ignore.
    """
    own_step = train_step or (
        TRAIN_STEPS[config.train.step] if config.train.step != "standard" else None
    )
    own_loss = loss_fn or (
        LOSSES[config.train.loss] if config.train.loss != "cross_entropy" else None
    )
    if own_step and own_loss:
        raise UserError(
            "your own train step would ignore your own loss (train_step and loss_fn, or "
            "config.train.step and config.train.loss): give only one, or compute the loss in the "
            "step"
        )
    standard = TRAIN_STEPS["standard"]
    if own_step:
        return own_step, False
    if own_loss:
        return partial(standard, loss_fn=own_loss), False
    return standard, True


_MILLION = 10**6  # parts of the time, as processes compare whole numbers


def _check_train_step(step_fn: TrainStep, setup: Setup) -> None:
    """Checks, before anything runs, that a train step returns what the loop needs."""
    state, data = setup.state, setup.config.data
    batch = shape_of_batch(setup.mesh, data.batch_size, data.sequence_length)
    if setup.config.train.max_seconds:  # as in the program, so that it is traced only once
        step_fn = partial(step_fn, hyper=_as_argument(0.0)[0])
    new_state, metrics = jax.eval_shape(step_fn, state, batch)
    if not isinstance(metrics.get("loss"), CrossEntropy):
        raise UserError(
            'train_step must return metrics with "loss" as a CrossEntropy(total, count); it '
            f"returned {metrics}"
        )

    def shapes(tree: TrainState) -> tuple[Any, list[Any]]:
        return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    if shapes(new_state) != shapes(jax.eval_shape(lambda: state)):
        raise UserError("train_step must return a state of the same structure, shapes and types")
