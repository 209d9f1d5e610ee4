"""Hooks: what happens at regular intervals during training.

A hook is a callable (step, state, metrics) with an attribute `every_steps`. It is called every so
many steps, and after the last step. The loop stops only for hooks. `metrics` has values by name:
those of the last step ("train/loss", ...) and those that earlier hooks have added
("validation/loss"). Every process of a job calls its hooks. The next step overwrites the arrays of
the state: a hook that keeps any of them must copy them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax

from charrnn_jax.config import flatten
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.floor import Floor, evaluate_above, find_floor
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.generation.sampler import generate
from charrnn_jax.registry import RULES, describe_registered
from charrnn_jax.training.devices import gather
from charrnn_jax.training.gradient_noise import WriteGradientNoise
from charrnn_jax.training.progress import Progress
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.setup import Setup
from charrnn_jax.training.train_step import TrainState
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.json_lines import JsonLines
from charrnn_jax.workdir.metadata import CheckpointMetadata

Metrics = dict[str, Any]


class Hook(Protocol):
    """Interface of a hook."""

    @property
    def every_steps(self) -> int:
        """Number of steps from one call to the next; 0: one epoch."""

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Called after `step` steps. An exception ends training."""


@dataclass(frozen=True)
class EndEpoch:
    """Prints and writes the mean training loss of every complete epoch."""

    every_steps: int
    recorder: Recorder

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if step % self.every_steps == 0:
            self.recorder.end_epoch(step)


@dataclass(frozen=True)
class Evaluate:
    """Prints and writes the validation loss, if there is a validation split."""

    every_steps: int
    setup: Setup
    recorder: Recorder
    progress: Progress

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        dataset, params = self.setup.dataset, gather(state.evaluated_params())
        protocol = make_protocol(self.setup.config.evaluation)
        protocol = protocol.fit(params, dataset.splits["train"], model=state.model)
        loss, excess = evaluate_above(
            self._floor,
            params,
            dataset.splits.with_context("validation"),
            model=state.model,
            protocol=protocol,
        )
        if not loss.count:
            return
        described = loss.describe(dataset.vocabulary.unit)
        self.progress.say(f"Step {step:,}: validation loss {described} ({protocol.name})")
        if excess:
            self.progress.say(f"Step {step:,}: {excess.describe(dataset.vocabulary.unit)}")
        row = {
            "validation/loss": loss.nats_per_char,
            "validation/bits_per_char": loss.bits_per_char,
            "validation/protocol": protocol.name,
            **({"validation/excess": excess.excess} if excess else {}),
        }
        self.recorder.write(step, row)
        self.recorder.early_stopping.add(step, loss.nats_per_char)
        metrics |= row
        if self._floor and excess:
            self._floor.check(excess, protocol=protocol)

    @cached_property
    def _floor(self) -> Floor | None:
        setup = self.setup
        of = setup.dataset.identity()
        return find_floor(setup.dataset, "validation", of=of, config=setup.config.data)


@dataclass(frozen=True)
class Sample:
    """Prints and writes text from the current model."""

    every_steps: int
    setup: Setup
    progress: Progress
    rows: JsonLines

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        config, origin = self.setup.config, self.setup.origin
        settings = config.sample
        samples = generate(
            gather(state.evaluated_params()),
            [settings.prompt] * settings.num_samples,
            model=state.model,
            vocabulary=self.setup.dataset.vocabulary,
            num_chars=settings.num_chars,
            temperature=settings.temperature,
            own=RULES.names_in(settings.rules),
            seed=config.seed,
        )
        start = f"weights of {origin.workdir}" if origin else "untrained model"
        trained = start if step == 0 else f"step {step:,}"
        for sample in samples:
            self.progress.say(f"--- sample, {trained} ---\n{sample.prompt}{sample.text}\n---")
            self.rows.write(
                {
                    "step": step,
                    "prompt": sample.prompt,
                    "text": sample.text,
                    "temperature": settings.temperature,
                }
            )


@dataclass(frozen=True)
class Save:
    """Saves everything that is needed to resume, and to use the model without its text."""

    every_steps: int
    setup: Setup
    recorder: Recorder
    checkpoints: Checkpoints
    files: Sequence[JsonLines]

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if step == self.checkpoints.latest:  # saved by another `Save` hook
            return
        if int(state.step) != step:
            raise UserError(
                f"train_step must increase state.step by one; after step {step} it is {state.step}"
            )
        for file in self.files:  # a checkpoint must never be newer than its rows
            file.sync()
        setup = self.setup
        metadata = CheckpointMetadata(
            step=step,
            config=setup.config.to_dict(),
            vocabulary=setup.dataset.vocabulary.to_dict(),
            corpus=setup.dataset.identity(),
            loss=metrics.get("validation/loss"),
            recorder=self.recorder.to_dict(),
            num_params=sum(param.size for param in jax.tree.leaves(state.params)),
            origin=setup.origin,
            registered=describe_registered(flatten(setup.config)),
            rows={file.file.name: file.written for file in self.files},
            data_devices=setup.mesh.shape["data"],
        )
        self.checkpoints.save(*state.to_trees(), metadata=metadata)


def make_hooks(
    setup: Setup,
    *,
    recorder: Recorder,
    progress: Progress,
    rows: Mapping[str, JsonLines],
    checkpoints: Checkpoints,
) -> list[Hook]:
    """Returns the hooks of a run in the order of their calls; registered hooks come last.

    Args:
      setup: what the run starts from.
      recorder: recorder of the steps' metrics.
      progress: progress bar and printed lines.
      rows: files of rows of the run, by their names.
      checkpoints: checkpoints of the run.
    """
    epoch, every = setup.batches.steps_per_epoch, setup.config.train
    evaluate_every = every.evaluate_every_steps or epoch
    # Every evaluated step is saved; otherwise the best loss might have no checkpoint.
    save_every = sorted({evaluate_every, every.checkpoint_every_steps or epoch})
    measures_noise = every.gradient_noise == "on"
    return [
        EndEpoch(epoch, recorder),
        Evaluate(evaluate_every, setup, recorder, progress),
        *([WriteGradientNoise(evaluate_every, setup, recorder)] if measures_noise else []),
        Sample(every.sample_every_steps or epoch, setup, progress, rows["samples.jsonl"]),
        *(Save(steps, setup, recorder, checkpoints, list(rows.values())) for steps in save_every),
        *setup.hooks,
    ]


@dataclass(frozen=True)
class Schedule:
    """When hooks are called.

    Attributes:
      hooks: the hooks, in the order of their calls.
      steps_per_epoch: number of steps in an epoch.
      num_steps: number of steps of the whole training.
    """

    hooks: Sequence[Hook]
    steps_per_epoch: int
    num_steps: int

    def next_stop(self, step: int) -> int:
        """Returns the first step after `step` after which a hook may be due."""
        periods = map(self._period, self.hooks)
        return min(self.num_steps, *((step // period + 1) * period for period in periods))

    def due(self, step: int, *, also_save: bool = False, is_last: bool = False) -> list[Hook]:
        """Returns the hooks to call after `step` steps.

        Args:
          step: number of steps done.
          also_save: whether to include hooks that save, even if they are not due.
          is_last: whether training ends here, even if steps are left.
        """
        options = {"also_save": also_save, "is_last": is_last}
        return [hook for hook in self.hooks if self.is_due(hook, step, **options)]

    def is_due(
        self, hook: Hook, step: int, *, also_save: bool = False, is_last: bool = False
    ) -> bool:
        """Returns whether to call a hook after `step` steps; see `due`."""
        return (
            is_last
            or step == self.num_steps
            or step % self._period(hook) == 0
            or (also_save and isinstance(hook, Save))
        )

    def _period(self, hook: Hook) -> int:
        return hook.every_steps or self.steps_per_epoch
