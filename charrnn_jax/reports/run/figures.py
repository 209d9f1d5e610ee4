"""Figures of a run: the loss, and how training went."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from charrnn_jax.reports.document import Chart
from charrnn_jax.reports.drawing import (
    COLOURS,
    INK,
    MUTED,
    drawable,
    drawing,
    make_figure,
    style_of,
    to_svg,
)
from charrnn_jax.reports.run.history import Curve, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GIB = 2.0**30
_OTHERS = {  # curve -> (title, label of the axis, whether the axis is logarithmic)
    "train/learning_rate": ("Learning rate", "learning rate", False),
    "train/gradient_norm": ("Gradient", "norm of the gradient", True),
    "train/update_ratio": ("Size of an update", "norm of update / norm of weights", True),
    "train/chars_per_second": ("Speed", "{unit}s/s", False),
    "train/peak_memory": ("Memory", "peak memory (GiB)", False),
}


def draw_figures(history: History, lines: Mapping[str, float], *, unit: str) -> "dict[str, Figure]":
    """Returns the figures of a run, {name: figure}; call it inside `drawing`.

    Args:
      history: what the run has recorded.
      lines: losses of other models under the protocol of the validation loss, by name, nats/char.
      unit: what losses are per, "char" or "byte".
    """
    figures = {}
    if len(history.validation.steps) or "train/loss" in history.curves:
        figures["loss"], axes = make_figure(height=3.6)
        _draw_loss(axes, history, lines, unit=unit)
    for name, (_, label, is_log) in _OTHERS.items():
        if curve := history.curves.get(name):
            file_name = name.removeprefix("train/")
            if file_name == "peak_memory":
                curve = Curve(curve.steps, curve.values / _GIB)
            figures[file_name], axes = make_figure(height=2.4)
            _draw_curve(axes, curve, label.format(unit=unit), is_log=is_log)
    return figures


def make_charts(history: History, lines: Mapping[str, float], *, unit: str) -> list[Chart]:
    """Returns the figures as parts of a page; see `draw_figures`."""
    titles = {name.removeprefix("train/"): title for name, (title, _, _) in _OTHERS.items()}
    charts = []
    with drawing():
        for name, figure in draw_figures(history, lines, unit=unit).items():
            title = titles.get(name, "Loss")
            svg = to_svg(figure, prefix=name.replace("_", "-"), label=title)
            charts.append(Chart(title, _caption(name, history, lines), svg))
    return charts


def _caption(name: str, history: History, lines: Mapping[str, float]) -> str:
    if name == "loss":
        text = "Training: mean since the row before, with dropout if there is any."
        if history.protocol:
            text += f" Validation: {history.protocol}, all of the split; the ring is the lowest."
        if lines:
            text += " Dashed: other models on the same split, under the same protocol."
        return f"{text} Training losses above the axis, such as at the start, are cut off."
    return {
        "gradient_norm": "Before clipping.",
        "chars_per_second": "Training text, without pauses for evaluation.",
        "peak_memory": "The most that was in use so far: of the accelerator, or of the process.",
    }.get(name, "")


def _draw_loss(axes: "Axes", history: History, lines: Mapping[str, float], *, unit: str) -> None:
    empty = Curve(np.array([]), np.array([]))
    train, validation = history.curves.get("train/loss", empty), history.validation
    if len(train.steps):
        axes.plot(train.steps, train.values, _format(train), lw=1.1, ms=4, color=MUTED)
        axes.lines[-1].set_label("training")
    if len(validation.steps):
        style = style_of(0)
        axes.plot(validation.steps, validation.values, lw=1.4, ms=4, label="validation", **style)
        best = int(np.argmin(validation.values))
        axes.plot(validation.steps[best], validation.values[best], "o", ms=9, mfc="none", color=INK)
    for number, (name, loss) in enumerate(lines.items(), 1):
        colour = COLOURS[number % len(COLOURS)]
        axes.axhline(loss, lw=1.1, ls=(0, (5, 3)), color=colour, label=drawable(name))
    # The losses at the start would hide all differences after it.
    trained, validated = _late(train, history), _late(validation, history)
    highest = [np.quantile(trained, 0.98)] if len(trained) else []
    others = [*validated, *lines.values()]
    low, high = float(min([*trained, *others])), float(max([*highest, *others]))
    room = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * room, high + 0.15 * room)
    _finish(axes, f"loss (nats/{unit})")
    axes.legend()


def _draw_curve(axes: "Axes", curve: Curve, label: str, *, is_log: bool) -> None:
    if is_log and curve.values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        # Labels between powers of ten have room only if the powers are few.
        is_narrow = curve.values.max() < 30 * curve.values.min()
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if is_narrow else "")
    elif curve.values.min() >= 0:
        axes.set_ylim(0, 1.08 * float(curve.values.max()) or 1.0)
    axes.plot(curve.steps, curve.values, _format(curve), lw=1.2, ms=4, color=COLOURS[0])
    _finish(axes, label)


def _late(curve: Curve, history: History) -> np.ndarray:
    """Returns the values after a tenth of the steps so far; all, if there are none."""
    late = curve.values[curve.steps >= 0.1 * history.last_step]
    return late if len(late) else curve.values


def _format(curve: Curve) -> str:
    """Returns the format of a line; a single point would be invisible without a mark."""
    return "o-" if len(curve.steps) == 1 else "-"


def _finish(axes: "Axes", label: str) -> None:
    axes.grid()
    axes.set_axisbelow(True)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
