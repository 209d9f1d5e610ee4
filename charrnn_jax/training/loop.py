"""`train`: from a config and a workdir to a trained model.

The loop starts the next call of the device, with one or several steps, before it reads the metrics
of the last one, so the device never waits for the host. After any interruption, training resumes in
the same workdir and ends with the parameters, optimizer state, carry and metrics of an
uninterrupted run, bit for bit.
"""

import inspect
from collections import defaultdict
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
from charrnn_jax.training.averaging import average_weights
from charrnn_jax.training.devices import (
    Agreement,
    own_rows,
    place_rows,
    shape_of_batch,
)
from charrnn_jax.training.dispatch import Call, calls, put_on_device
from charrnn_jax.training.early_stopping import EarlyStopping
from charrnn_jax.training.hooks import Hook, Sample, Schedule, make_hooks
from charrnn_jax.training.interrupt import InterruptRequest
from charrnn_jax.training.progress import Progress, format_seconds
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.schedules import make_rate_at
from charrnn_jax.training.setup import Setup, check_hooks, make_setup
from charrnn_jax.training.sharing import compile_for, share_among_cores
from charrnn_jax.training.time_limit import TimeLimit
from charrnn_jax.training.train_step import (
    LossFn,
    TracedHyperparameters,
    TrainState,
    TrainStep,
)
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
            for call, where in prefetch(queue, lambda c: (c, place_rows(c.where, setup.mesh))):
                if is_new := call.sequence_length != length:  # they only grow
                    length = call.sequence_length
                    if length not in programs:
                        programs[length] = compile_for(setup, averaged, sequence_length=length)
                state, metrics = programs[length](
                    state, tokens, where, np.int32(call.num_steps), *_as_argument(progress)
                )
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


@dataclass(frozen=True)
class Training:
    """A run that is being trained. The steps are run by the caller.

    Attributes:
      setup: what the run starts from.
      state: state to start from, new or of the latest checkpoint.
      start: number of steps done in this state.
      stop: number of steps done at the end, at most; equal to `start` if nothing is left to train.
      recorder: recorder of the steps' metrics.
      progress: progress bar and printed lines.
      checkpoints: checkpoints of the run.
      schedule: hooks of the run, and when they are called.
    """

    setup: Setup
    state: TrainState
    start: int
    stop: int
    recorder: Recorder
    progress: Progress
    checkpoints: Checkpoints
    schedule: Schedule

    def calls(self, *, on_device: bool) -> Iterator[Call]:
        """Yields the calls from `start` to the last step; see `dispatch`."""
        return calls(
            self.setup.batches,
            start=self.start,
            stop=self.stop,
            num_steps=self.setup.steps_per_call,
            next_stop=self.schedule.next_stop,
            on_device=on_device,
            rows=own_rows(self.setup.config.data.batch_size),
        )

    def first_progress(self) -> float | None:
        """Returns the share of the training that is over at `start`; None: there is no time limit.

        It is the same in all processes.
        """
        limit, setup = self.recorder.limit, self.setup
        if not limit.max_seconds:
            return None
        return max(limit.fraction(self.recorder.seconds), self.start / setup.num_steps)

    def fraction_of_time(self, step: int) -> float:
        """Returns the share of the time limit that is over once hooks were called after `step`."""
        known = self.recorder.limit.hook_seconds
        due = {_name(hook) for hook in self.schedule.due(step)}
        return self.recorder.fraction_of_time(pause=sum(known.get(name, 0.0) for name in due))

    @property
    def stops_early(self) -> bool:
        """Whether the validation losses so far end training."""
        return self.recorder.early_stopping.is_over

    def is_due(self, step: int) -> bool:
        """Returns whether a hook is due after `step` steps."""
        return bool(self.schedule.due(step))

    def call_hooks(
        self,
        state: TrainState,
        step: int,
        *,
        signal_number: int | None = None,
        time_is_over: bool = False,
    ) -> None:
        """Waits for the device, and calls the hooks that are due after `step` steps.

        If the evaluation ends training, all hooks after it are due.

        Args:
          state: state after these steps.
          step: number of steps done.
          signal_number: signal that ends training; None: there was none.
          time_is_over: whether training ends here because of its time limit.

        Raises:
          Interrupted: there was a signal; the state is saved, even if that was not due.
        """
        self.recorder.flush()
        metrics, limit = dict(self.recorder.last), self.recorder.limit
        if time_is_over:
            limit.ended = limit.max_seconds
        took: dict[str, float] = defaultdict(float)
        for hook in self.schedule.hooks:
            is_last = time_is_over or self.stops_early
            if not self.schedule.is_due(hook, step, also_save=bool(signal_number), is_last=is_last):
                continue
            try:
                hook(step, state, metrics)
            except Exception:
                # Once the state is saved, the signal ends training even if a hook fails.
                if not (signal_number and self.checkpoints.latest == step):
                    raise
            took[_name(hook)] += self.recorder.resume_timing()  # saved seconds include these
        limit.hook_seconds |= took
        if time_is_over:
            self.progress.say(
                f"The {format_seconds(limit.max_seconds)} of train.max_seconds are over, after "
                f"{step:,} steps"
            )
        elif self.stops_early and step < self.setup.num_steps:
            why = _why_early(self.setup, self.recorder.early_stopping)
            self.progress.say(f"Training stops early after step {step:,}: {why}")
        if signal_number:
            self.checkpoints.wait()
            self.progress.say(
                f"Saved step {step:,} of {self.setup.num_steps:,}; run the same command to resume"
            )
            raise Interrupted(signal_number, step)


def _why_early(setup: Setup, early_stopping: EarlyStopping) -> str:
    """Returns why training stops early, and which text decided that."""
    why = early_stopping.describe(setup.dataset.vocabulary.unit)
    return why + "; the test split was not used" if setup.config.data.test_fraction else why


def _name(hook: Hook) -> str:
    """Returns the name that the seconds of a hook, and of its like, are counted under."""
    return getattr(hook, "__name__", type(hook).__name__)


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
        saved = metadata.recorder if metadata else None
        limit = TimeLimit.resume(config.train.max_seconds, (saved or {}).get("time_limit"))
        is_over = limit.has_ended(saved["seconds"] if saved else 0.0)
        early_stopping = EarlyStopping.resume(
            config.train.patience, (saved or {}).get("early_stopping")
        )
        stop = start if is_over or early_stopping.is_over else setup.num_steps
        if is_first_process() and start < stop:
            with replacing(setup.workdir / "config.json") as partial_file:
                partial_file.write_text(to_json(config) + "\n")
        with Progress(
            num_steps=setup.num_steps, start=start, steps_per_epoch=epoch, label=setup.label
        ) as progress:
            if metadata:
                progress.say(
                    _describe_resume(
                        setup, metadata, time_is_over=is_over, early_stopping=early_stopping
                    )
                )
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
                rate_at=make_rate_at(config.optimizer, num_steps=setup.num_steps),
                limit=limit,
                early_stopping=early_stopping,
                started=setup.started,
                steps_per_epoch=epoch,
                vocabulary_size=setup.dataset.vocabulary.size if is_known else None,
                saved=saved,
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
            yield Training(setup, state, start, stop, recorder, progress, checkpoints, schedule)


def _restore(
    setup: Setup, checkpoints: Checkpoints
) -> tuple[TrainState, CheckpointMetadata | None]:
    """Returns the state of the latest checkpoint and its metadata, or a new state and None."""
    if (restored := checkpoints.restore(*setup.state.to_trees())) is None:
        return setup.state, None
    params, rest, metadata = restored
    return setup.state.with_trees(params, rest), metadata


def _describe_resume(
    setup: Setup,
    metadata: CheckpointMetadata,
    *,
    time_is_over: bool,
    early_stopping: EarlyStopping,
) -> str:
    """Returns where training resumes, and the change of the learning rate, if there is one."""
    start, num_steps = metadata.step, setup.num_steps
    nothing_left = f"Nothing is left to train: {setup.workdir} has {start:,} steps, and"
    if start >= num_steps:
        return f"{nothing_left} the config asks for {num_steps:,}"
    if time_is_over:
        limit = setup.config.train.max_seconds
        return f"{nothing_left} the {limit:g} seconds of train.max_seconds are over"
    if early_stopping.is_over:
        why = _why_early(setup, early_stopping)
        return f"{nothing_left} {why}: a larger --config.train.patience resumes it"
    line = f"Resuming from step {start:,} of {num_steps:,} in {setup.workdir}"
    old = from_dict(metadata.config)
    old_steps = old.train.num_steps or old.train.num_epochs * setup.batches.steps_per_epoch
    if old.train.max_seconds or setup.config.train.max_seconds:
        return line  # the learning rate depends on the time
    before = make_rate_at(old.optimizer, num_steps=old_steps)(start, None)
    now = make_rate_at(setup.config.optimizer, num_steps=num_steps)(start, None)
    if before != now:
        line += f"; the learning rate there was {before:.4g}, and is now {now:.4g}"
    return line
