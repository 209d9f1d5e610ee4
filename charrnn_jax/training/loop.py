"""`train`: from a config and a workdir to a trained model.

The loop makes the next call of the device, of one step or of several, before it reads the metrics
of the last, so the device never waits for the host. Whatever interrupts it, starting it again in
the same workdir gives the parameters, optimizer state, carry and metrics that an undisturbed run
would have given, bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.config import to_json, validate
from charrnn_jax.data.batches import make_batches, prefetch
from charrnn_jax.data.dataset import Dataset, load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.evaluation.protocols import evaluate
from charrnn_jax.files import replacing
from charrnn_jax.generation.prompts import encode_prompt
from charrnn_jax.generation.sampler import generate
from charrnn_jax.models.char_rnn import make_model, summary
from charrnn_jax.models.fused import can_train_in_bfloat16
from charrnn_jax.training.checkpoints import Checkpoints
from charrnn_jax.training.devices import (
    SignalAgreement,
    first_then_others,
    from_first,
    gather,
    is_first_process,
    make_mesh,
    own_rows,
    place_rows,
    place_state,
    say_once,
    shape_of_batch,
    state_shardings,
)
from charrnn_jax.training.dispatch import (
    Call,
    calls,
    choose_steps_per_call,
    make_run_steps,
    put_on_device,
)
from charrnn_jax.training.interrupt import InterruptRequest
from charrnn_jax.training.json_lines import JsonLines
from charrnn_jax.training.optimizer import make_optimizer, make_schedule
from charrnn_jax.training.progress import Progress
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.resume import read_saved
from charrnn_jax.training.train_step import (
    LossFn,
    TrainState,
    TrainStep,
    create_train_state,
)
from charrnn_jax.training.train_step import train_step as standard_train_step
from charrnn_jax.training.warm_start import warm_start

OnEvaluation = Callable[[int, float], None]


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    train_step: TrainStep | None = None,
    loss_fn: LossFn = cross_entropy,
    on_evaluation: OnEvaluation | None = None,
) -> TrainState:
    """Trains a model, or goes on where the run in `workdir` stopped.

    Args:
      config: see `default_config`.
      workdir: folder of the run; made if it is not there.
      train_step: your own step instead of the standard one: a pure function (state, batch) ->
        (state, metrics) that raises state.step by one and gives "loss" as a `CrossEntropy`; it is
        jitted here, with the state donated.
      loss_fn: your own loss in the standard step: (logits [B, T, V], targets [B, T]) -> [B, T].
        Validation is always the cross-entropy.
      on_evaluation: is told of every evaluation, (step, validation loss in nats/char), after the
        checkpoint behind that step was saved; what it raises ends training.

    Returns:
      The state behind the last step.

    Raises:
      UserError: config, text or workdir cannot be used; nothing was written.
      TrainingError: the loss is not finite, or a checkpoint could not be written.
      Interrupted: a signal came; the state is saved.
    """
    if train_step is not None and loss_fn is not cross_entropy:
        raise UserError("train_step and loss_fn were both given: put the loss into your train_step")
    loop = Loop(
        config,
        workdir,
        usual_loss=train_step is None and loss_fn is cross_entropy,
        on_evaluation=on_evaluation,
    )
    # Jitted by itself it is traced once, however often it is looked at and put into loops.
    train_step = jax.jit(train_step or partial(standard_train_step, loss_fn=loss_fn))
    batch = shape_of_batch(loop.mesh, config.data.batch_size, config.data.sequence_length)
    _check_train_step(train_step, loop.state, batch)
    say_once(loop.dataset.describe())
    say_once(summary(loop.state.model))
    run_steps = make_run_steps(
        train_step,
        sequence_length=config.data.sequence_length,
        num_steps=loop.steps_per_call,
        shardings=state_shardings(loop.state, loop.mesh),
    )
    agree = SignalAgreement(loop.mesh)
    with InterruptRequest() as interrupt, loop.running() as state:
        tokens = put_on_device(loop.dataset.splits["train"], loop.mesh)
        queue = loop.calls(on_device=tokens is not None)
        for call, where in prefetch(queue, lambda c: (c, place_rows(c.where, loop.mesh))):
            state, metrics = run_steps(state, tokens, where, np.int32(call.num_steps))
            loop.recorder.add(call.stop, metrics, count=call.num_steps)
            signal_number = agree(interrupt.signal_number)
            if loop.has_something_to_do(call.stop) or signal_number:
                loop.after_step(state, call.stop, signal_number=signal_number)
    return state


def _check_train_step(step_fn: TrainStep, state: TrainState, batch: Any) -> None:
    """Checks before anything runs what the loop needs of a train step."""
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


class Loop:
    """One run: what it starts from, and what happens every so many steps. The steps are others'.

    Args:
      config: of the run.
      workdir: of the run.
      usual_loss: the loss that is minimised is the cross-entropy.
      on_evaluation: see `train`.
      dataset: that of another run with the same `config.data`, so that it need not be read again.
      label: name of the run, if it is one of several in this process.

    Attributes:
      mesh: of the devices.
      state: before the first step, where it belongs on the mesh.
      num_steps: of the whole training.
      steps_per_call: of the device, at most.

    Raises:
      UserError: config, text or workdir cannot be used; nothing was written.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | Path,
        *,
        usual_loss: bool = True,
        on_evaluation: OnEvaluation | None = None,
        dataset: Dataset | None = None,
        label: str = "",
    ):
        validate(config)
        if config.model.dtype == "bfloat16" and not can_train_in_bfloat16():
            raise UserError(
                f"jax {jax.__version__} cannot train in bfloat16 on this processor: take "
                "--config.model.dtype=float32, or a newer jax"
            )
        self.config = config
        self.workdir = Path(workdir)
        self.on_evaluation = on_evaluation
        self.label = label
        saved = from_first(lambda: read_saved(self.workdir, config=config))
        if dataset is None or (saved and saved["corpus"] != dataset.identity()):
            vocabulary = Vocabulary.from_dict(saved["vocabulary"]) if saved else None
            recorded = saved["corpus"] if saved else None
            dataset = first_then_others(
                lambda: load_dataset(config.data, vocabulary=vocabulary, recorded=recorded)
            )
        self.dataset = dataset
        self.batches = make_batches(
            dataset.splits["train"],
            batching=config.data.batching,
            batch_size=config.data.batch_size,
            sequence_length=config.data.sequence_length,
            seed=config.seed,
        )
        try:  # here rather than in the middle
            encode_prompt(config.sample.prompt, dataset.vocabulary)
        except UserError as error:
            raise UserError(f"set another --config.sample.prompt: {error}") from error
        self.mesh = make_mesh(
            data_devices=config.train.data_devices,
            model_devices=config.train.model_devices,
            batch_size=config.data.batch_size,
            hidden_size=config.model.hidden_size,
        )
        model = make_model(config.model, vocabulary_size=dataset.vocabulary.size)
        self.num_steps = (
            config.train.num_steps or config.train.num_epochs * self.batches.steps_per_epoch
        )
        self.steps_per_call = config.train.steps_per_call or choose_steps_per_call(
            model,
            batch_size=config.data.batch_size,
            sequence_length=config.data.sequence_length,
        )
        state = create_train_state(
            model,
            make_optimizer(config.optimizer, num_steps=self.num_steps),
            seed=config.seed,
            batch_size=config.data.batch_size,
            reset_every_steps=self.batches.reset_every_steps,
        )
        self.initial_loss_is_known = usual_loss and not config.train.init_from
        self.origin = saved.get("origin") if saved else None
        if config.train.init_from and not saved:
            state, self.origin = warm_start(
                state, config.train.init_from, config=config.model, vocabulary=dataset.vocabulary
            )
        self.state = place_state(state, self.mesh)

    @contextmanager
    def running(self, *, at: int | None = None) -> Iterator[TrainState]:
        """Locks the workdir and gives the state to go on from: of the latest checkpoint, or new.

        Args:
          at: go on from the checkpoint of this step instead; 0: from the beginning. What was saved
            and written behind it is deleted.
        """
        with Checkpoints(self.workdir) as self.checkpoints:
            if is_first_process():
                with replacing(self.workdir / "config.json") as partial_file:
                    partial_file.write_text(to_json(self.config) + "\n")
            if at is not None:
                self.checkpoints.go_back(at)
            state, saved, self.start = self.state, None, 0
            kept = -1  # of the rows, those up to this step; -1: none
            if restored := self.checkpoints.restore(state):
                state, metadata = restored
                self.start = kept = metadata["step"]
                saved = metadata["recorder"]
            self.samples = JsonLines(self.workdir / "samples.jsonl", keep_until_step=kept)
            steps_per_epoch = self.batches.steps_per_epoch
            with Progress(
                num_steps=self.num_steps,
                start=self.start,
                steps_per_epoch=steps_per_epoch,
                label=self.label,
            ) as self.progress:
                if restored:
                    self.progress.say(
                        f"Resuming from step {self.start:,} of {self.num_steps:,} in {self.workdir}"
                    )
                self.recorder = Recorder(
                    JsonLines(self.workdir / "metrics.jsonl", keep_until_step=kept),
                    self.progress,
                    schedule=make_schedule(self.config.optimizer, num_steps=self.num_steps),
                    log_every_steps=self.config.train.log_every_steps,
                    steps_per_epoch=steps_per_epoch,
                    vocabulary_size=(
                        self.dataset.vocabulary.size if self.initial_loss_is_known else None
                    ),
                    saved=saved,
                )
                if self.start == 0:
                    self.sample(state, 0)
                    self.recorder.resume_timing()
                yield state

    def calls(self, *, on_device: bool) -> Iterator[Call]:
        """Yields what the device is to do, from the start to the last step; see `dispatch`."""
        return calls(
            self.batches,
            start=self.start,
            stop=self.num_steps,
            num_steps=self.steps_per_call,
            next_stop=self.next_stop,
            on_device=on_device,
            rows=own_rows(self.config.data.batch_size),
        )

    def has_something_to_do(self, step: int) -> bool:
        """Whether `after_step` would do anything without a signal."""
        return step == self.num_steps or step == self.next_stop(step - 1)

    def after_step(self, state: TrainState, step: int, *, signal_number: int | None) -> None:
        """Does what is due behind `step`. Only then does it wait for the device."""
        every = self.config.train
        epoch_ends = step % self.batches.steps_per_epoch == 0
        evaluates = self.is_due(step, every.evaluate_every_steps)
        samples = self.is_due(step, every.sample_every_steps)
        # What was evaluated is saved, or the best would be a number without a model.
        saves = self.is_due(step, every.checkpoint_every_steps) or evaluates
        self.recorder.flush()
        if epoch_ends:
            self.recorder.end_epoch(step)
        loss = self.evaluate(state, step) if evaluates else None
        if samples:
            self.sample(state, step)
        self.recorder.resume_timing()  # the seconds that are saved hold all that was before
        if saves or signal_number:
            self.save(state, step, loss=loss)
            self.recorder.resume_timing()
        if signal_number:
            self.checkpoints.wait()
            self.progress.say(
                f"Saved step {step:,} of {self.num_steps:,}; the same command resumes"
            )
            raise Interrupted(signal_number, step)
        if loss is not None and self.on_evaluation:
            self.on_evaluation(step, loss)

    def is_due(self, step: int, every_steps: int) -> bool:
        """Whether something happens behind `step`: every so many, and at the end; 0: an epoch."""
        return step % (every_steps or self.batches.steps_per_epoch) == 0 or step == self.num_steps

    def next_stop(self, step: int) -> int:
        """Returns the first step behind `step` after which something may be due."""
        every = self.config.train
        periods = {
            self.batches.steps_per_epoch,
            every.evaluate_every_steps,
            every.sample_every_steps,
            every.checkpoint_every_steps,
        }
        return min((step // period + 1) * period for period in periods - {0})

    def evaluate(self, state: TrainState, step: int) -> float | None:
        """Shows and returns the validation loss in nats/char; None without a validation split."""
        settings = self.config.evaluation
        loss = evaluate(
            gather(state.params),
            self.dataset.splits.with_context("validation"),
            model=state.model,
            protocol=settings.protocol,
            window=settings.window,
            batch_size=settings.batch_size,
        )
        if not loss.count:
            return None
        described = loss.describe(self.dataset.vocabulary.unit)
        self.progress.say(f"Step {step:,}: validation loss {described} ({settings.protocol})")
        self.recorder.write(
            step,
            {
                "validation/loss": loss.nats_per_char,
                "validation/bits_per_char": loss.bits_per_char,
                "validation/protocol": settings.protocol,
            },
        )
        return loss.nats_per_char

    def sample(self, state: TrainState, step: int) -> None:
        """Shows what the model writes now."""
        settings = self.config.sample
        samples = generate(
            gather(state.params),
            [settings.prompt] * settings.num_samples,
            model=state.model,
            vocabulary=self.dataset.vocabulary,
            num_chars=settings.num_chars,
            temperature=settings.temperature,
            seed=self.config.seed,
        )
        start = f"weights of {self.origin['workdir']}" if self.origin else "untrained model"
        trained = start if step == 0 else f"step {step:,}"
        for sample in samples:
            self.progress.say(f"--- sample, {trained} ---\n{sample.prompt}{sample.text}\n---")
            self.samples.write(
                {
                    "step": step,
                    "prompt": sample.prompt,
                    "text": sample.text,
                    "temperature": settings.temperature,
                }
            )

    def save(self, state: TrainState, step: int, *, loss: float | None) -> None:
        """Saves all that is needed to go on, and to use the model without its text."""
        if int(state.step) != step:
            raise UserError(
                f"train_step must raise state.step by one; at {step} it is {state.step}"
            )
        metadata = {
            "step": step,
            "loss": loss,
            "recorder": self.recorder.to_dict(),
            "config": self.config.to_dict(),
            "vocabulary": self.dataset.vocabulary.to_dict(),
            "corpus": self.dataset.identity(),
            "origin": self.origin,
            "num_params": sum(param.size for param in jax.tree.leaves(state.params)),
        }
        self.checkpoints.save(state, step=step, metadata=metadata)
