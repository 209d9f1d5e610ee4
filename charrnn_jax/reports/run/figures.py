"""Figures of a run: the loss, and how training went."""

import re
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
_MOST_MARKS = 40
_LOSSES = {"validation/loss": "Validation loss", "train/loss": "Training loss"}
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
        if len((curve := _curve_of(history, name)).steps):
            file_name = name.removeprefix("train/")
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


def make_charts_together(histories: Mapping[str, History], *, unit: str) -> list[Chart]:
    """Returns figures with the curves of several runs, for a page.

    Args:
      histories: what to call each run -> what it has recorded.
      unit: what losses are per, "char" or "byte".
    """
    losses = {name: (title, f"loss (nats/{unit})", False) for name, title in _LOSSES.items()}
    protocols = sorted({each.protocol for each in histories.values() if each.protocol})
    captions = {"validation/loss": f"Protocol: {', '.join(protocols)}."}
    charts = []
    with drawing():
        for name, (title, label, is_log) in (losses | _OTHERS).items():
            curves = {run: _curve_of(history, name) for run, history in histories.items()}
            if not any(len(curve.steps) for curve in curves.values()):
                continue
            figure, axes = make_figure(height=3.0)
            _draw_together(axes, curves)
            _scale(axes, np.concatenate([curve.values for curve in curves.values()]), is_log=is_log)
            if name in losses:
                late = np.concatenate([_late(curves[run], each) for run, each in histories.items()])
                _fit(axes, *np.quantile(late, [0, 0.98]).tolist())
            _finish(axes, label.format(unit=unit))
            svg = to_svg(figure, prefix=re.sub("[_/]", "-", name), label=title)
            charts.append(Chart(title, captions.get(name, ""), svg))
    return charts


def _draw_together(axes: "Axes", curves: Mapping[str, Curve]) -> None:
    """Draws curves with a legend; those of many points have no marks, which would hide them."""
    for number, (name, curve) in enumerate(curves.items()):
        style = style_of(number)
        if len(curve.steps) > _MOST_MARKS:
            style["marker"] = ""
        if len(curve.steps):
            axes.plot(curve.steps, curve.values, lw=1.2, ms=4, label=name, **style)
    axes.legend(ncols=1 + (len(curves) - 1) // 6)


def _curve_of(history: History, name: str) -> Curve:
    """Returns a curve as it is drawn; an empty one if the run has none."""
    if name == "validation/loss":
        return history.validation
    curve = history.curves.get(name, Curve(np.array([]), np.array([])))
    return Curve(curve.steps, curve.values / _GIB) if name == "train/peak_memory" else curve


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
        "peak_memory": (
            "The most that the accelerator, or the process, had used since it started; a resumed "
            "run starts again."
        ),
    }.get(name, "")


def _draw_loss(axes: "Axes", history: History, lines: Mapping[str, float], *, unit: str) -> None:
    train, validation = (_curve_of(history, name) for name in ("train/loss", "validation/loss"))
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
    _fit(axes, float(min([*trained, *others])), float(max([*highest, *others])))
    _finish(axes, f"loss (nats/{unit})")
    axes.legend()


def _fit(axes: "Axes", low: float, high: float) -> None:
    """Sets the range of an axis of losses, with some room around it."""
    room = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * room, high + 0.15 * room)


def _draw_curve(axes: "Axes", curve: Curve, label: str, *, is_log: bool) -> None:
    axes.plot(curve.steps, curve.values, _format(curve), lw=1.2, ms=4, color=COLOURS[0])
    _scale(axes, curve.values, is_log=is_log)
    _finish(axes, label)


def _scale(axes: "Axes", values: np.ndarray, *, is_log: bool) -> None:
    if is_log and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        # Labels between powers of ten have room only if the powers are few.
        is_narrow = values.max() < 30 * values.min()
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if is_narrow else "")
    elif values.min() >= 0:
        axes.set_ylim(0, 1.08 * float(values.max()) or 1.0)


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
