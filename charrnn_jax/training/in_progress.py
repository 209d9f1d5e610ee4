"""`Training`: a run that is being trained, with its open files, hooks and time limit.

`loop.train` runs the steps of one run, and `replicas.train_replicas` those of several.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from charrnn_jax.config import from_dict, to_json
from charrnn_jax.errors import Interrupted
from charrnn_jax.files import replacing
from charrnn_jax.messages import format_seconds
from charrnn_jax.processes import is_first_process
from charrnn_jax.training.devices import own_rows
from charrnn_jax.training.dispatch import Call, calls
from charrnn_jax.training.early_stopping import EarlyStopping
from charrnn_jax.training.hooks import Evaluate, Hook, Metrics, Sample, Save, Schedule, make_hooks
from charrnn_jax.training.phases import EVALUATION, OTHER, SAMPLING, SAVING, is_timed, phase
from charrnn_jax.training.progress import Progress
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.schedules import make_rate_at
from charrnn_jax.training.setup import Setup
from charrnn_jax.training.time_limit import TimeLimit
from charrnn_jax.training.train_step import TrainState
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.json_lines import ROW_FILES, JsonLines
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.sessions import describe_session

_PHASES = {Evaluate: EVALUATION, Sample: SAMPLING, Save: SAVING}


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
                self._call(hook, step, state, metrics)
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

    def _call(self, hook: Hook, step: int, state: TrainState, metrics: Metrics) -> None:
        with phase(_PHASES.get(type(hook), OTHER)):
            hook(step, state, metrics)
            if is_timed():  # else a checkpoint is written while training goes on
                self.checkpoints.wait()


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
            rows = {
                name: JsonLines(
                    setup.workdir / name,
                    keep_until_step=start if metadata else -1,  # -1: no row is kept
                    expected=metadata.rows.get(name) if metadata else None,
                )
                for name in ROW_FILES
            }
            if start < stop:
                session = describe_session(start + 1, num_devices=setup.mesh.size)
                rows["sessions.jsonl"].write(asdict(session))
            is_known = checks_initial_loss and not config.train.init_from
            recorder = Recorder(
                rows["metrics.jsonl"],
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
                rows=rows,
                checkpoints=checkpoints,
            )
            if start == 0:
                for hook in own_hooks:
                    if isinstance(hook, Sample):  # text from the untrained model
                        with phase(SAMPLING):
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
