"""`Recorder`: reads the metrics of training steps, one call late, and records them.

It knows nothing of the model or the text.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.errors import DivergedError
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.memory import peak_memory
from charrnn_jax.messages import format_seconds
from charrnn_jax.training.early_stopping import EarlyStopping
from charrnn_jax.training.progress import Progress, describe_initial_loss
from charrnn_jax.training.schedules import RateAt
from charrnn_jax.training.time_limit import TimeLimit
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.json_lines import JsonLines


@dataclass
class Tally:
    """Training loss and time since the last row or epoch.

    Attributes:
      nats: loss in nats, summed over the characters in float64.
      chars: number of predicted characters.
      timed_chars: number of characters in steps whose time counts; a step that compiles does not.
      seconds: time of these steps, without pauses for evaluation and other hooks.
    """

    nats: float = 0.0
    chars: int = 0
    timed_chars: int = 0
    seconds: float = 0.0

    def add(self, loss: CrossEntropy, *, seconds: float | None) -> None:
        """Adds one step.

        Args:
          loss: loss of the step.
          seconds: time of the step; None: it does not count.
        """
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
        """Training speed; NaN if no time was measured."""
        return self.timed_chars / self.seconds if self.seconds else math.nan


class Recorder:
    """Turns the metrics of steps into rows of metrics.jsonl, a progress bar and printed lines.

    Args:
      rows: file of the rows.
      progress: progress bar and printed lines.
      checkpoints: checkpoints of the run, named in errors.
      config: the `config.train` section.
      rate_at: function from the step and the progress to the learning rate.
      limit: time limit of the run.
      early_stopping: best validation loss of the run.
      started: when this process began with the run, by `time.perf_counter`.
      steps_per_epoch: number of steps in an epoch.
      vocabulary_size: V, to check the initial loss; None: the loss is not checked.
      saved: `to_dict()` of the recorder of the run that is resumed; None: the run is new.

    Attributes:
      last: metrics of the last step that was read, named as in the rows.
      limit: time limit of the run.
      early_stopping: best validation loss of the run.
    """

    def __init__(
        self,
        rows: JsonLines,
        progress: Progress,
        *,
        checkpoints: Checkpoints,
        config: ConfigDict,
        rate_at: RateAt,
        limit: TimeLimit,
        early_stopping: EarlyStopping,
        started: float,
        steps_per_epoch: int,
        vocabulary_size: int | None,
        saved: dict[str, Any] | None = None,
    ):
        self._rows = rows
        self._progress = progress
        self._checkpoints = checkpoints
        self._config = config
        self._rate_at = rate_at
        self.limit = limit
        self.early_stopping = early_stopping
        self._steps_per_epoch = steps_per_epoch
        self._vocabulary_size = vocabulary_size
        self._window = Tally(**saved["window"]) if saved else Tally()  # since the last row
        self._epoch = Tally(**saved["epoch"]) if saved else Tally()  # since the last epoch
        self._seconds = saved["seconds"] if saved else 0.0  # of the run, including pauses
        # Runs of earlier versions lack these two; their first loss is not known.
        self._is_old = saved is not None and "first_loss" not in saved
        self._first_loss = saved.get("first_loss") if saved else None
        self._skipped_in_a_row = saved.get("skipped_in_a_row", 0) if saved else 0
        self._mark = started  # seconds are counted up to here
        self._pending: tuple[int, int, dict[str, Any], float | None] | None = None
        self._progress_of_call: float | None = None
        self._is_timed = False  # whether the time since the mark is that of steps only
        self.last: dict[str, float] = {}

    def to_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as plain data for JSON."""
        return {
            "window": asdict(self._window),
            "epoch": asdict(self._epoch),
            "seconds": self._seconds,
            "first_loss": self._first_loss,
            "skipped_in_a_row": self._skipped_in_a_row,
            "early_stopping": self.early_stopping.to_dict(),
            **({"time_limit": self.limit.to_dict()} if self.limit.max_seconds else {}),
        }

    def fraction_of_time(self, *, pause: float = 0.0) -> float:
        """Returns the share of the time limit that is over, from 0 to 1; without one, 0.

        Args:
          pause: seconds from now until steps go on.
        """
        return self.limit.fraction(self._seconds + time.perf_counter() - self._mark + pause)

    def add(
        self,
        stop: int,
        metrics: dict[str, Any],
        *,
        count: int,
        progress: float | None = None,
        compiles: bool = False,
    ) -> None:
        """Takes the metrics of a call that was just started, and reads those of the call before it.

        Args:
          stop: number of steps done after the call.
          metrics: metrics of its steps, with a leading axis of steps.
          count: number of steps in the call; later entries of the metrics are ignored.
          progress: share of the training that was over, if the learning rate depends on it.
          compiles: whether starting the call has compiled a program, which is no time of steps.

        Raises:
          DivergedError: a loss or gradient of the call before it is not finite, or too large.
        """
        self._is_timed &= not compiles
        self.flush()
        self._pending = stop, count, metrics, progress

    def flush(self) -> None:
        """Reads the metrics that are still on the device, which waits for their steps."""
        if self._pending is None:
            return
        (stop, count, metrics, self._progress_of_call), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        of_call = self._lap()
        seconds = of_call / count
        if self._is_timed:
            self.limit.call_seconds = of_call
        for index in range(count):
            step_metrics = jax.tree.map(lambda values, i=index: values[i], metrics)
            self._add_step(
                stop - count + 1 + index, step_metrics, seconds if self._is_timed else None
            )
        self._is_timed = True

    def _add_step(self, step: int, metrics: dict[str, Any], seconds: float | None) -> None:
        loss: CrossEntropy = metrics.pop("loss")
        nats_per_char = loss.nats_per_char
        gradient_norm = float(np.mean(metrics.get("gradient_norm", 0.0)))
        if not (math.isfinite(nats_per_char) and math.isfinite(gradient_norm)):
            self._note_nonfinite(step, loss=nats_per_char, gradient_norm=gradient_norm)
            return
        self._skipped_in_a_row = 0
        if self._first_loss is None and not self._is_old:
            self._first_loss = nats_per_char
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
            seconds_left=self._seconds_left(),
        )
        others = {f"train/{name}": float(np.mean(value)) for name, value in metrics.items()}
        self.last = {"train/loss": nats_per_char, **others}
        if step % self._config.log_every_steps == 0:
            self._write_window(step, others)

    def _note_nonfinite(self, step: int, *, loss: float, gradient_norm: float) -> None:
        """Reports a step that was not applied, and ends training if it may not be skipped."""
        self._skipped_in_a_row += 1
        what = "norm of the gradient" if math.isfinite(loss) else "loss"
        value = gradient_norm if math.isfinite(loss) else loss
        problem = (
            f"the {what} is {value} at step {step:,}, with a learning rate of "
            f"{self._rate(step):.4g}; the step was not applied"
        )
        if self._config.on_nonfinite == "stop":
            raise self._diverged(problem, "--config.train.on_nonfinite=skip")
        if self._skipped_in_a_row > self._config.max_skipped_steps:
            problem += f", like the {self._skipped_in_a_row - 1} before it"
            raise self._diverged(problem, "a larger --config.train.max_skipped_steps")
        self._progress.say(f"WARNING: {problem}")
        self.write(step, {"train/skipped_in_a_row": self._skipped_in_a_row})

    def _rate(self, step: int) -> float:
        """Returns the learning rate that led to `step`, in the call whose metrics were read."""
        return self._rate_at(step - 1, self._progress_of_call)

    def _seconds_left(self) -> float | None:
        limit = self.limit.max_seconds
        return max(limit - self._seconds, 0.0) if limit else None

    def _diverged(self, problem: str, way_out: str) -> DivergedError:
        saved = self._checkpoints.latest
        last = "There is no checkpoint" if saved is None else f"The last checkpoint is {saved:,}"
        return DivergedError(
            f"{problem}. {last}; with the same config, training would end here again: give a lower "
            f"--config.optimizer.learning_rate, or {way_out}"
        )

    def _write_window(self, step: int, others: dict[str, float]) -> None:
        """Writes the means of the steps since the last row, and the last step's other metrics."""
        mean, ratio = self._window.loss.nats_per_char, self._config.max_loss_ratio
        row = {
            "train/loss": mean,
            "train/chars_per_second": self._window.chars_per_second,
            "train/peak_memory": peak_memory(),
            "train/learning_rate": self._rate(step),
        }
        if self._progress_of_call is not None:
            row["train/progress"] = self._progress_of_call
        self.write(step, row | others)
        self._window = Tally()
        first = self._first_loss or 0.0  # your own loss may be negative, and has no such bound
        if ratio and 0 < first < mean / ratio:
            raise self._diverged(
                f"training diverges: the mean loss up to step {step:,} is {mean:.4g}, above "
                f"{ratio:g} times the first ({first:.4g}), with a learning rate of "
                f"{self._rate(step):.4g}",
                "--config.train.max_loss_ratio=0, which turns this check off",
            )

    def end_epoch(self, step: int) -> None:
        """Prints and writes the mean loss and the seconds of the epoch that ends after `step`."""
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

    def resume_timing(self) -> float:
        """Ends a pause: its time counts for the run, but not for its speed.

        Returns:
          Seconds since the last step or the last pause.
        """
        return self._lap()

    @property
    def seconds(self) -> float:
        """Seconds of the run, of all processes that have trained it, up to the last row."""
        return self._seconds

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._seconds += seconds
        return seconds
