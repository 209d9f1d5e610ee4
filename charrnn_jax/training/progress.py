"""What people see during training: a progress bar on a terminal, and lines everywhere."""

import math
import sys
from logging import INFO

import jax
from tqdm import tqdm

from charrnn_jax.messages import PROGRESS, format_seconds
from charrnn_jax.processes import is_first_process, say_once

LONG_RUN_SECONDS = 15 * 60
_BARS = "▁▂▃▄▅▆▇█"


class Sparkline:
    """The course of the loss as a few characters, each the mean of as many steps.

    >>> line = Sparkline(longest=4)
    >>> for loss in (4, 3, 2, 2, 1, 1, 1, 1):
    ...     line.add(loss)
    >>> str(line)
    '█▄▁▁'

    Args:
      longest: most characters, an even number; with more means, neighbours are joined.
    """

    def __init__(self, longest: int = 16):
        self._longest = longest
        self._width = 1  # steps in a mean
        self._means: list[float] = []
        self._sum, self._count = 0.0, 0  # of the steps after the last mean

    def add(self, loss: float) -> None:
        """Adds the loss of a step."""
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count < self._width:
            return
        if len(self._means) == self._longest:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means, self._width = [(a + b) / 2 for a, b in pairs], 2 * self._width
            return  # this mean is now half of one
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0

    def __str__(self) -> str:
        if len(self._means) < 2:
            return ""
        low, high = min(self._means), max(self._means)
        scale = (len(_BARS) - 1) / ((high - low) or 1.0)
        return "".join(_BARS[round((mean - low) * scale)] for mean in self._means)


class Progress:
    """A progress bar with epoch, loss and its course, chars/s and time left, and lines above it.

    The bar is shown only on a terminal; lines always go to standard output. After the first steps,
    a line estimates how long training will take. A run with a label is one of several in this
    process: its lines start with the label, and there is no bar and no estimate. In a job of
    several processes, only the first shows anything.

    Args:
      num_steps: number of steps of the whole training.
      start: number of steps already done.
      steps_per_epoch: number of steps in an epoch.
      label: name of the run, if it is one of several in this process; otherwise "".
    """

    def __init__(self, *, num_steps: int, start: int, steps_per_epoch: int, label: str = ""):
        self._label = label
        self._steps_per_epoch = steps_per_epoch
        # Seconds of the first steps; None: no estimate is due, or several runs share the time.
        self._timed: list[float] | None = None if label else []
        self._bar = tqdm(
            total=num_steps,
            initial=start,
            unit="step",
            disable=bool(label)
            or not (sys.stderr.isatty() and is_first_process() and PROGRESS.isEnabledFor(INFO)),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._num_steps = num_steps
        self._course = Sparkline()
        encoding = getattr(sys.stderr, "encoding", None) or ""
        self._shows_course = encoding.lower().replace("-", "") == "utf8"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(
        self,
        step: int,
        *,
        loss: float,
        chars_per_second: float,
        seconds: float | None,
        seconds_left: float | None = None,
    ) -> None:
        """Moves the bar.

        Args:
          step: number of steps done.
          loss: loss of the last step, in nats/char.
          chars_per_second: training speed; NaN: not known yet.
          seconds: time of the last step; None: it included compilation.
          seconds_left: time until training ends even if steps are left; None: there is no limit.
        """
        epoch = 1 + (step - 1) // self._steps_per_epoch
        speed = "" if math.isnan(chars_per_second) else f", {chars_per_second:,.0f} chars/s"
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        left = "" if seconds_left is None else f", {format_seconds(seconds_left)} left"
        self._course.add(loss)
        # Last, since a narrow terminal cuts the end off.
        course = f" {self._course}".rstrip() if self._shows_course else ""
        self._bar.set_postfix_str(f"loss {loss:.4f}{speed}{left}{course}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._timed is not None and seconds is not None:
            self._timed.append(seconds)
            # Enough for an estimate: 20 steps, or on a slow device as many as take five seconds.
            if len(self._timed) == 20 or sum(self._timed) > 5:
                steps = self._num_steps - step
                mean = sum(self._timed) / len(self._timed)
                needed, most = steps * mean, math.inf if seconds_left is None else seconds_left
                if needed > most:
                    self.say(
                        f"Training ends in {format_seconds(most)}, after about "
                        f"{int(most / mean):,} of the remaining {steps:,} steps."
                    )
                else:
                    self.say(describe_time_left(needed, steps=steps))
                self._timed = None

    def say(self, text: str) -> None:
        """Prints one or more lines."""
        say_once(f"[{self._label}] {text}" if self._label else text)


def describe_initial_loss(loss: float, *, vocabulary_size: int) -> str:
    """Returns the tutorial's check of the untrained model: exp(loss) should be about V.

    Args:
      loss: loss of the first step, in nats/char.
      vocabulary_size: V, including `[UNK]`.
    """
    ratio = math.exp(min(loss, 700.0)) / vocabulary_size
    line = (
        f"Initial loss {loss:.4f}: exp(loss) = {math.exp(min(loss, 700.0)):.2f}, "
        f"about the vocabulary size of {vocabulary_size}"
    )
    if 2 / 3 < ratio < 3 / 2:
        return line + ", as it should be"
    return (
        f"WARNING: initial loss {loss:.4f}: exp(loss) = {math.exp(min(loss, 700.0)):.2f} is far "
        f"from the vocabulary size of {vocabulary_size}: the model is badly initialised, check "
        "--config.model.init_scale"
    )


def describe_time_left(seconds: float, *, steps: int) -> str:
    """Returns how long training will take on this device and, if that is long, what to do.

    Args:
      seconds: time left.
      steps: number of steps left.
    """
    device = jax.devices()[0]
    text = (
        f"About {format_seconds(seconds)} for the remaining {steps:,} steps on this device "
        f"({device.device_kind})."
    )
    if seconds > LONG_RUN_SECONDS:
        text += (
            "\nThat is long: --config=quick gives a good model in minutes. "
            "Ctrl-C saves,\nand the same command resumes."
        )
    return text
