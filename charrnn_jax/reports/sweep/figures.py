"""Figures of a sweep for a web page or a paper: intervals and learning curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn_jax.reports.document import Chart
from charrnn_jax.reports.drawing import (
    INK,
    MUTED,
    drawable,
    drawing,
    make_figure,
    range_of,
    style_of,
    to_svg,
)
from charrnn_jax.reports.sweep.effects import changes_text, setting_text
from charrnn_jax.reports.sweep.statistics import (
    Configuration,
    Interval,
    Summary,
    is_sparse,
    mean_interval,
    varying,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CURVES = 10  # configurations, besides the baseline
MAX_DOTS = 40  # configurations, besides the baseline
_PAPER = (5.5, 2.5)  # inches; the text width of papers with one column


def make_run_charts(summaries: Sequence[Summary]) -> list[Chart]:
    """Returns the charts of the intervals and the learning curves, if there is anything to show.

    Args:
      summaries: summaries of the configurations, best first.
    """
    charts = [_interval_chart(summaries)] if any(each.loss for each in summaries) else []
    if any(_curve(each.configuration) for each in summaries):
        charts.append(_curve_chart(summaries))
    return charts


def write_paper_figure(file: Path, summaries: Sequence[Summary], *, format: str) -> None:
    """Writes a figure of intervals next to learning curves; equal results give equal bytes.

    The marks and numbers of the intervals are also the legend of the curves.

    Args:
      file: path of the figure.
      summaries: summaries of the configurations, best first.
      format: "pdf" or "svg".
    """
    from matplotlib.figure import Figure

    shown = _best(summaries, MAX_CURVES)
    with drawing(7.5, fonttype="path"):
        size = (_PAPER[0], max(_PAPER[1], 0.17 * len(shown) + 0.7))
        left, right = (figure := Figure(figsize=size, layout="constrained")).subplots(1, 2)
        _draw_intervals(left, summaries, shown, longest=22)
        _draw_curves(right, summaries, shown)
        metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}[format]
        figure.savefig(file, format=format, metadata=metadata)


def labels_of(summaries: Sequence[Summary], *, longest: int = 34) -> list[str]:
    """Returns the rank and the settings that vary of each summary, shortened for a figure."""
    configurations = [each.configuration for each in summaries]
    names, sparse = varying(configurations), is_sparse(configurations)
    labels = []
    for rank, each in enumerate(configurations, 1):
        if sparse:
            changed = {n: value for n, value in each.settings.items() if n in names}
            short = {n.split(".")[-1]: value for n, value in changed.items()}
            shown = short if len(short) == len(changed) else changed
            text = changes_text(shown, list(shown))
        else:
            text = ", ".join(setting_text(each, name) for name in names)
        labels.append(drawable(f"#{rank} {text}".strip(), longest))
    return labels


def _best(summaries: Sequence[Summary], num: int) -> list[int]:
    """Returns the indices of the first `num` summaries and of the baseline."""
    return [i for i, each in enumerate(summaries) if i < num or each.is_baseline]


def _draw_intervals(
    axes: "Axes", summaries: Sequence[Summary], shown: Sequence[int], *, longest: int
) -> bool:
    """Draws the intervals; returns whether a loss is beyond the end of the axis."""
    texts = labels_of(summaries, longest=longest)
    losses = [loss for i in shown for loss in summaries[i].configuration.losses.values()]
    scale = range_of(losses or [0.0])
    labels = []
    for row, index in enumerate(shown):
        summary, style = summaries[index], style_of(row)
        if index >= MAX_CURVES and not summary.is_baseline:
            style = {"color": MUTED, "marker": "o"}  # not among the learning curves
        labels.append(f"{texts[index]} (baseline)" if summary.is_baseline else texts[index])
        if summary.loss is None:
            axes.text(
                0.98,
                row,
                "no run is done",
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                color=MUTED,
            )
            continue
        mean, low, high, _ = summary.loss
        if low is not None and high is not None:
            ends = [scale.near(low), scale.near(high)]
            axes.plot(ends, [row, row], "-", lw=1.4, color=style["color"], zorder=3)
        axes.plot(scale.near(mean), row, ms=5.5, zorder=4, **{**style, "linestyle": ""})
        if summary.is_baseline:
            axes.axvline(scale.near(mean), color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(shown)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("validation loss (nats/char)")

    lows = [each.loss.low for each in summaries if each.loss and each.loss.low is not None]
    left = max(min([*lows, scale.low]), scale.low - 0.3 * scale.span)
    axes.set_xlim(left - 0.04 * scale.span, scale.high + 0.08 * scale.span)
    for row, index in enumerate(shown):
        singles = summaries[index].configuration.losses.values()
        for loss in singles:
            if loss > scale.high:
                axes.plot(scale.high + 0.05 * scale.span, row, ">", ms=5, mew=0, color=INK)
            elif len(singles) > 1:
                axes.plot(loss, row + 0.27, "o", ms=2.6, mew=0, alpha=0.6, color=INK, zorder=2)
    return max(losses, default=0.0) > scale.high


def _interval_chart(summaries: Sequence[Summary]) -> Chart:
    shown = _best(summaries, MAX_DOTS)
    configurations = [each.configuration for each in summaries]
    sparse = is_sparse(configurations)
    with drawing():
        figure, axes = make_figure(height=0.25 * len(shown) + 0.75)
        is_cut = _draw_intervals(axes, summaries, shown, longest=44 if sparse else 32)
        svg = to_svg(figure, prefix="intervals", label="Loss of every configuration")
    names = "changes" if sparse else ", ".join(varying(configurations))
    caption = (
        f"Labels: number in the table{f'; {names}' if names else ''}. Large marks: means over "
        "seeds; bars: 95% intervals (none for a single seed; wide ones are cut off); small dots: "
        "single seeds; dashed line: mean of the baseline."
    )
    if len(shown) < len(summaries):
        caption += f" Only the best {MAX_DOTS} of {len(summaries)} and the baseline are shown."
    if is_cut:
        caption += " Triangles at the right edge: seeds with a loss beyond it."
    return Chart("Loss of every configuration", caption, svg)


def _curve(configuration: Configuration) -> list[tuple[int, Interval]]:
    """Returns mean and interval at each step where all runs that are done have a finite loss.

    If no run is done, all runs that have any finite loss are used.
    """
    curves = [
        finite
        for run in configuration.done or configuration.runs
        if (finite := {step: loss for step, loss in run.curve if math.isfinite(loss)})
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    means = [(step, mean_interval([curve[step] for curve in curves])) for step in steps]
    return [(step, mean) for step, mean in means if mean]


def _draw_curves(axes: "Axes", summaries: Sequence[Summary], shown: Sequence[int]) -> bool:
    """Draws the learning curves; returns whether a mean is above the end of the axis."""
    curves = {row: _curve(summaries[index].configuration) for row, index in enumerate(shown)}
    curves = {row: curve for row, curve in curves.items() if curve}
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss (nats/char)")
    if not curves:
        axes.annotate("no curves", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return False
    # The high losses at the start of training would hide the differences at its end.
    late = [m.mean for c in curves.values() for s, m in c if s >= 0.15 * c[-1][0]]
    scale = range_of(late)
    for row, curve in curves.items():
        steps, style = [step for step, _ in curve], style_of(row)
        means = [scale.near(interval.mean) for _, interval in curve]
        every = slice((len(steps) - 1) % max(1, len(steps) // 6), None, max(1, len(steps) // 6))
        label = f"#{shown[row] + 1}"
        axes.plot(steps, means, lw=1.3, ms=4, markevery=every, label=label, **style)
        band = [
            (step, i.low, i.high)
            for step, i in curve
            if i.low is not None and i.high is not None and i.high - i.low < scale.span
        ]
        if band:
            at, lows, highs = zip(*band, strict=True)
            axes.fill_between(at, lows, highs, alpha=0.16, lw=0, color=style["color"])
    top = scale.high + 0.06 * scale.span
    axes.set_ylim(scale.low - 0.06 * scale.span, top)
    return max(m.mean for c in curves.values() for _, m in c) > top


def _curve_chart(summaries: Sequence[Summary]) -> Chart:
    shown = _best(summaries, MAX_CURVES)
    with drawing():
        figure, axes = make_figure(height=3.6)
        is_cut = _draw_curves(axes, summaries, shown)
        axes.legend(ncols=3 if len(shown) > 6 else 2, columnspacing=1, handlelength=2.4)
        svg = to_svg(figure, prefix="curves", label="Learning curves")
    caption = (
        "Means over the runs that are done (over all runs if none is), at the steps at which all "
        "of them were evaluated; bands: 95% intervals, unless wider than the figure. Numbers as in "
        "the table."
    )
    if len(shown) < len(summaries):
        caption += f" Only the best {MAX_CURVES} of {len(summaries)} and the baseline are shown."
    if is_cut:
        caption += " Losses above the axis, such as at the start of training, are cut off."
    return Chart("Learning curves", caption, svg)
