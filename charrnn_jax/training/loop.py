"""`train`: from a config and a workdir to a trained model.

The loop starts the next call of the device, with one or several steps, before it reads the metrics
of the last one, so the device never waits for the host. After any interruption, training resumes in
the same workdir and ends with the parameters, optimizer state, carry and metrics of an
uninterrupted run, bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.config import from_dict, to_json, validate
from charrnn_jax.data.batches import prefetch
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.files import replacing
from charrnn_jax.messages import PROGRESS
from charrnn_jax.models.char_rnn import summary
from charrnn_jax.processes import is_first_process, say_once
from charrnn_jax.registry import LOSSES, TRAIN_STEPS
from charrnn_jax.training.devices import (
    SignalAgreement,
    own_rows,
    place_rows,
    shape_of_batch,
    state_shardings,
)
from charrnn_jax.training.dispatch import Call, calls, make_run_steps, put_on_device
from charrnn_jax.training.hooks import Hook, Sample, Schedule, make_hooks
from charrnn_jax.training.interrupt import InterruptRequest
from charrnn_jax.training.optimizer import make_schedule
from charrnn_jax.training.progress import Progress
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.setup import Setup, check_hooks, make_setup
from charrnn_jax.training.train_step import LossFn, TrainState, TrainStep, apply_if_finite
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.json_lines import JsonLines
from charrnn_jax.workdir.metadata import CheckpointMetadata
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
        the last step; see `training.hooks`.

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
    workdir = Path(workdir)
    step_fn = jax.jit(step_fn)  # jitted by itself, so that it is traced only once
    with locked_for_training(workdir, text=config.data.path):
        setup = make_setup(config, workdir)
        _check_train_step(step_fn, setup)
        if setup.resumes:
            say_once(setup.dataset.headline())
        else:
            say_once(f"{setup.dataset.describe()}\n{summary(setup.state.model)}")
        PROGRESS.debug(
            f"{setup.mesh.size} device(s) of kind {jax.devices()[0].device_kind!r}, "
            f"{setup.steps_per_call} steps a call, {setup.batches.steps_per_epoch} an epoch"
        )
        make_program = partial(
            make_run_steps,
            apply_if_finite(step_fn),
            num_steps=setup.steps_per_call,
            shardings=state_shardings(setup.state, setup.mesh),
        )
        agree = SignalAgreement(setup.mesh)
        with (
            InterruptRequest() as interrupt,
            start_training(setup, hooks=hooks, checks_initial_loss=is_standard) as training,
        ):
            state = training.state
            tokens = put_on_device(setup.dataset.splits["train"], setup.mesh)
            queue = training.calls(on_device=tokens is not None)
            length = 0
            for call, where in prefetch(queue, lambda c: (c, place_rows(c.where, setup.mesh))):
                if is_new := call.sequence_length != length:  # they only grow
                    length = call.sequence_length
                    run_steps = make_program(sequence_length=length)
                state, metrics = run_steps(state, tokens, where, np.int32(call.num_steps))
                training.recorder.add(call.stop, metrics, count=call.num_steps, compiles=is_new)
                signal_number = agree(interrupt.signal_number)
                if training.is_due(call.stop) or signal_number:
                    training.call_hooks(state, call.stop, signal_number=signal_number)
        return state


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


def _check_train_step(step_fn: TrainStep, setup: Setup) -> None:
    """Checks, before anything runs, that a train step returns what the loop needs."""
    state, data = setup.state, setup.config.data
    batch = shape_of_batch(setup.mesh, data.batch_size, data.sequence_length)
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


@dataclass(frozen=True)
class Training:
    """A run that is being trained. The steps are run by the caller.

    Attributes:
      setup: what the run starts from.
      state: state to start from, new or of the latest checkpoint.
      start: number of steps done in this state.
      recorder: recorder of the steps' metrics.
      progress: progress bar and printed lines.
      checkpoints: checkpoints of the run.
      schedule: hooks of the run, and when they are called.
    """

    setup: Setup
    state: TrainState
    start: int
    recorder: Recorder
    progress: Progress
    checkpoints: Checkpoints
    schedule: Schedule

    def calls(self, *, on_device: bool) -> Iterator[Call]:
        """Yields the calls from `start` to the last step; see `dispatch`."""
        return calls(
            self.setup.batches,
            start=self.start,
            stop=self.setup.num_steps,
            num_steps=self.setup.steps_per_call,
            next_stop=self.schedule.next_stop,
            on_device=on_device,
            rows=own_rows(self.setup.config.data.batch_size),
        )

    def is_due(self, step: int) -> bool:
        """Returns whether a hook is due after `step` steps."""
        return bool(self.schedule.due(step))

    def call_hooks(self, state: TrainState, step: int, *, signal_number: int | None = None) -> None:
        """Waits for the device, and calls the hooks that are due after `step` steps.

        Args:
          state: state after these steps.
          step: number of steps done.
          signal_number: signal that ends training; None: there was none.

        Raises:
          Interrupted: there was a signal; the state is saved, even if that was not due.
        """
        self.recorder.flush()
        metrics = dict(self.recorder.last)
        for hook in self.schedule.due(step, also_save=bool(signal_number)):
            try:
                hook(step, state, metrics)
            except Exception:
                # Once the state is saved, the signal ends training even if a hook fails.
                if not (signal_number and self.checkpoints.latest == step):
                    raise
            self.recorder.resume_timing()  # so that saved seconds include earlier hooks
        if signal_number:
            self.checkpoints.wait()
            self.progress.say(
                f"Saved step {step:,} of {self.setup.num_steps:,}; run the same command to resume"
            )
            raise Interrupted(signal_number, step)


@contextmanager
def start_training(
    setup: Setup,
    *,
    hooks: Sequence[Hook] = (),
    at: int | None = None,
    checks_initial_loss: bool = True,
) -> Iterator[Training]:
    """Opens the files of a run, and yields it with the state to start from.

    Args:
      setup: what the run starts from; its workdir must be locked.
      hooks: hooks of the caller, called last.
      at: step of the checkpoint to resume from, instead of the latest; 0: start anew. Everything
        that was saved and written after it is deleted.
      checks_initial_loss: whether the loss is the standard one, whose value for an untrained model
        is known.
    """
    config, epoch = setup.config, setup.batches.steps_per_epoch
    with Checkpoints(setup.workdir) as checkpoints:
        if at is not None:
            checkpoints.go_back(at)
        state, metadata = _restore(setup, checkpoints)
        start = metadata.step if metadata else 0
        if is_first_process() and start < setup.num_steps:
            with replacing(setup.workdir / "config.json") as partial_file:
                partial_file.write_text(to_json(config) + "\n")
        with Progress(
            num_steps=setup.num_steps, start=start, steps_per_epoch=epoch, label=setup.label
        ) as progress:
            if metadata:
                progress.say(_describe_resume(setup, metadata))
            metrics, samples = (
                JsonLines(
                    setup.workdir / name,
                    keep_until_step=start if metadata else -1,  # -1: no row is kept
                    expected=metadata.rows.get(name) if metadata else None,
                )
                for name in ("metrics.jsonl", "samples.jsonl")
            )
            is_known = checks_initial_loss and not config.train.init_from
            recorder = Recorder(
                metrics,
                progress,
                checkpoints=checkpoints,
                config=config.train,
                schedule=make_schedule(config.optimizer, num_steps=setup.num_steps),
                steps_per_epoch=epoch,
                vocabulary_size=setup.dataset.vocabulary.size if is_known else None,
                saved=metadata.recorder if metadata else None,
            )
            own_hooks = make_hooks(
                setup,
                recorder=recorder,
                progress=progress,
                metrics=metrics,
                samples=samples,
                checkpoints=checkpoints,
            )
            if start == 0:
                for hook in own_hooks:
                    if isinstance(hook, Sample):  # text from the untrained model
                        hook(0, state, {})
                recorder.resume_timing()
            schedule = Schedule([*own_hooks, *hooks], epoch, setup.num_steps)
            yield Training(setup, state, start, recorder, progress, checkpoints, schedule)


def _restore(
    setup: Setup, checkpoints: Checkpoints
) -> tuple[TrainState, CheckpointMetadata | None]:
    """Returns the state of the latest checkpoint and its metadata, or a new state and None."""
    if (restored := checkpoints.restore(*setup.state.to_trees())) is None:
        return setup.state, None
    params, rest, metadata = restored
    return setup.state.with_trees(params, rest), metadata


def _describe_resume(setup: Setup, metadata: CheckpointMetadata) -> str:
    """Returns where training resumes, and the change of the learning rate, if there is one."""
    start, num_steps = metadata.step, setup.num_steps
    if start >= num_steps:
        return (
            f"Nothing is left to train: {setup.workdir} has {start:,} steps, and the config asks "
            f"for {num_steps:,}"
        )
    line = f"Resuming from step {start:,} of {num_steps:,} in {setup.workdir}"
    old = from_dict(metadata.config)
    old_steps = old.train.num_steps or old.train.num_epochs * setup.batches.steps_per_epoch
    before = float(make_schedule(old.optimizer, num_steps=old_steps)(start))
    now = float(make_schedule(setup.config.optimizer, num_steps=num_steps)(start))
    if before != now:
        line += f"; the learning rate there was {before:.4g}, and is now {now:.4g}"
    return line
