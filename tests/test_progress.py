"""The progress bar."""

import io
import sys

import numpy as np
import pytest

from charrnn_jax.training.progress import _BARS, Progress, Sparkline


def test_sparkline_is_the_means_of_equal_parts() -> None:
    losses, line = np.random.default_rng(0).uniform(1, 4, 700), Sparkline(longest=8)
    for num, loss in enumerate(losses.tolist(), 1):
        line.add(loss)
        width = 1
        while num // width > 8:
            width *= 2
        means = losses[: num // width * width].reshape(-1, width).mean(axis=1)
        np.testing.assert_allclose(line._means, means)
    heights = [_BARS.index(bar) for bar in str(line)]
    assert (min(heights), max(heights)) == (0, len(_BARS) - 1)
    assert heights.index(0) == np.argmin(means)


class Terminal(io.StringIO):
    def __init__(self, encoding: str):
        super().__init__()
        self._encoding = encoding

    encoding = property(lambda self: self._encoding)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["UTF-8", "ascii"])
def test_bar_shows_the_course_of_the_loss_where_the_terminal_can(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(num_steps=9, start=0, steps_per_epoch=4) as progress:
        progress._bar.dynamic_ncols, progress._bar.ncols = None, 200  # nothing is cut off
        for step in range(1, 9):
            progress.update(step, loss=4 / step, chars_per_second=1e5, seconds=0.1)
            progress._bar.refresh()
    shown = terminal.getvalue().rpartition("\r")[2]
    assert "loss 0.5000" in shown
    assert ("100,000 chars/s █" in shown) == (encoding == "UTF-8")
