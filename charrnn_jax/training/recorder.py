"""`Recorder`: reads the metrics of the steps, one call late, and writes them down.

It measures and shows; it does not know what the model or the text is.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
import optax

from charrnn_jax.errors import DivergedError
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.training.progress import Progress, describe_initial_loss, format_seconds
from charrnn_jax.workdir.json_lines import JsonLines


@dataclass
class Tally:
    """Training loss and time since the last row.

    Attributes:
      nats: loss summed over the characters, in float64.
      chars: predicted.
      timed_chars: of these, the ones whose time was taken (not the step that compiles).
      seconds: for the timed characters; pauses for evaluation and the like are left out.
    """

    nats: float = 0.0
    chars: int = 0
    timed_chars: int = 0
    seconds: float = 0.0

    def add(self, loss: CrossEntropy, *, seconds: float | None) -> None:
        """Adds one step. seconds: None if its time must not count."""
        self.nats += float(loss.total)
        self.chars += int(loss.count)
        if seconds is not None:
            self.timed_chars += int(loss.count)
            self.seconds += seconds

    @property
    def loss(self) -> CrossEntropy:
        return CrossEntropy(self.nats, self.chars)

    @property
    def chars_per_second(self) -> float:
        """NaN as long as no time was taken."""
        return self.timed_chars / self.seconds if self.seconds else math.nan


class Recorder:
    """Turns the metrics of single steps into rows of metrics.jsonl, a bar and printed lines.

    Args:
      rows: where the rows go.
      progress: where people look.
      schedule: step -> learning rate.
      log_every_steps: steps that one row averages.
      steps_per_epoch: steps.
      vocabulary_size: V, for the check of the initial loss; None: it is another kind of loss.
      saved: `to_dict()` of the recorder of the run that is resumed.

    Attributes:
      last: metrics of the last step that was read, by the names of their rows.
    """

    def __init__(
        self,
        rows: JsonLines,
        progress: Progress,
        *,
        schedule: optax.Schedule,
        log_every_steps: int,
        steps_per_epoch: int,
        vocabulary_size: int | None,
        saved: dict[str, Any] | None = None,
    ):
        self._rows = rows
        self._progress = progress
        self._schedule = schedule
        self._log_every_steps = log_every_steps
        self._steps_per_epoch = steps_per_epoch
        self._vocabulary_size = vocabulary_size
        self._window = Tally(**saved["window"]) if saved else Tally()  # since the last row
        self._epoch = Tally(**saved["epoch"]) if saved else Tally()  # since the last epoch
        self._seconds = saved["seconds"] if saved else 0.0  # of the run, pauses included
        self._mark = time.perf_counter()  # up to here the seconds are counted
        self._pending: tuple[int, int, dict[str, Any]] | None = None
        self._compiled = False
        self.last: dict[str, float] = {}

    def to_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as plain data for JSON."""
        return {
            "window": asdict(self._window),
            "epoch": asdict(self._epoch),
            "seconds": self._seconds,
        }

    def add(self, stop: int, metrics: dict[str, Any], *, count: int) -> None:
        """Takes the metrics of a call that was just dispatched, and reads those of the one before.

        Args:
          stop: steps done after the call.
          metrics: of its steps, along the first axis.
          count: number of the steps; what comes after them in the metrics is not read.

        Raises:
          DivergedError: a loss of the call before is not finite.
        """
        self.flush()
        self._pending = stop, count, metrics

    def flush(self) -> None:
        """Reads the metrics that are still on the device: waits until it has done their steps."""
        if self._pending is None:
            return
        (stop, count, metrics), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        seconds = self._lap() / count
        for index in range(count):
            step_metrics = jax.tree.map(lambda values, i=index: values[i], metrics)
            self._add_step(
                stop - count + 1 + index, step_metrics, seconds if self._compiled else None
            )
        self._compiled = True  # the first call of a process compiles: its time says nothing

    def _add_step(self, step: int, metrics: dict[str, Any], seconds: float | None) -> None:
        loss: CrossEntropy = metrics.pop("loss")
        nats_per_char = loss.nats_per_char
        if not math.isfinite(nats_per_char):
            raise DivergedError(
                f"the loss is {nats_per_char} at step {step:,}: try a lower "
                "--config.optimizer.learning_rate; with the same --workdir training goes on from "
                "the last checkpoint"
            )
        for tally in (self._window, self._epoch):
            tally.add(loss, seconds=seconds)
        if step == 1 and self._vocabulary_size:
            self._progress.say(
                describe_initial_loss(nats_per_char, vocabulary_size=self._vocabulary_size)
            )
        self._progress.update(
            step,
            loss=nats_per_char,
            seconds=seconds,
            chars_per_second=self._window.chars_per_second,
        )
        others = {f"train/{name}": float(np.mean(value)) for name, value in metrics.items()}
        self.last = {"train/loss": nats_per_char, **others}
        if step % self._log_every_steps == 0:
            self._write_window(step, others)

    def _write_window(self, step: int, others: dict[str, float]) -> None:
        """Writes the means of the window, and the other metrics of its last step."""
        row = {
            "train/loss": self._window.loss.nats_per_char,
            "train/chars_per_second": self._window.chars_per_second,
            "train/learning_rate": float(self._schedule(step - 1)),
        }
        self.write(step, row | others)
        self._window = Tally()

    def end_epoch(self, step: int) -> None:
        """Prints and writes the mean loss and the seconds of the epoch that ends with `step`."""
        loss, epoch = self._epoch.loss, step // self._steps_per_epoch
        line = f"Epoch {epoch}: train loss {loss.nats_per_char:.4f} nats/char"
        if self._epoch.seconds:
            line += f", {format_seconds(self._epoch.seconds)}"
            line += f", {self._epoch.chars_per_second:,.0f} chars/s"
        self._progress.say(line)
        self.write(
            step,
            {"epoch/train_loss": loss.nats_per_char, "epoch/train_seconds": self._epoch.seconds},
        )
        self._epoch = Tally()

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Writes a row for `step`, with the epoch and the seconds since the run began."""
        epoch = step / self._steps_per_epoch
        self._rows.write({"step": step, "epoch": epoch, "seconds": self._seconds, **row})

    def resume_timing(self) -> None:
        """Ends a pause: the time since the last step counts for the run, not for its speed."""
        self._lap()

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._seconds += seconds
        return seconds
