"""Figures of the loss against the settings: a curve, a heat map or parallel axes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from charrnn_jax.reports.document import Chart
from charrnn_jax.reports.drawing import (
    COLOURS,
    INK,
    MUTED,
    SURFACE,
    drawable,
    drawing,
    make_figure,
    range_of,
    style_of,
    to_svg,
)
from charrnn_jax.reports.sweep.effects import is_geometric, is_numeric, levels_of, setting_text
from charrnn_jax.reports.sweep.statistics import (
    Configuration,
    Summary,
    is_sparse,
    setting_key,
    varying,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_GRID = 20  # levels of each factor of a heat map
NUM_BEST = 5  # configurations that are highlighted on parallel axes


def make_factor_charts(summaries: Sequence[Summary]) -> list[Chart]:
    """Returns the figure that suits the settings that vary, if there is one.

    One numeric setting: the loss against it. Two settings in a grid that is at least 80% full: a
    heat map. More than two: parallel axes, unless each is in few configurations.

    Args:
      summaries: summaries of the configurations, best first.
    """
    configurations = [each.configuration for each in summaries]
    names = varying(configurations)
    if not any(each.loss for each in summaries):
        return []
    if len(names) == 1 and len(summaries) > 2 and is_numeric(configurations, names[0]):
        return [_curve_chart(summaries, names[0])]
    if len(names) == 2:
        sizes = [len(levels_of(configurations, name)) for name in names]
        is_grid = len(configurations) >= 0.8 * math.prod(sizes) and max(sizes) <= MAX_GRID
        return [_grid_chart(summaries, names)] if is_grid else []
    if len(names) < 3 or is_sparse(configurations):
        return []
    return [_parallel_chart(summaries, names)]


def _curve_chart(summaries: Sequence[Summary], name: str) -> Chart:
    ordered = sorted(summaries, key=lambda each: float(each.configuration.settings[name]))
    losses = [loss for each in ordered for loss in each.configuration.losses.values()]
    scale = range_of(losses)
    num_lost = 0
    with drawing():
        figure, axes = make_figure(height=3.6)
        _set_scale(axes, [each.configuration for each in ordered], name)
        axes.set_ylim(scale.low - 0.1 * scale.span, scale.high + 0.15 * scale.span)
        line = []
        for each in ordered:
            x = float(each.configuration.settings[name])
            for loss in each.configuration.losses.values():
                is_beyond = loss > scale.high
                y, marker = (scale.high + 0.1 * scale.span, "^") if is_beyond else (loss, "o")
                axes.plot(x, y, marker, ms=3.5, mew=0, alpha=0.6, color=INK, zorder=2)
            if each.loss:
                mean, low, high, _ = each.loss
                line.append((x, scale.near(mean)))
                if low is not None and high is not None:
                    ends = [scale.near(low), scale.near(high)]
                    axes.plot([x, x], ends, lw=1.3, color=COLOURS[0])
            lost = sum(run.status in ("diverged", "failed") for run in each.configuration.runs)
            if lost:
                num_lost += lost
                above = axes.get_xaxis_transform()
                axes.plot(
                    x, 1.03, "X", ms=7, mew=0, color=COLOURS[1], transform=above, clip_on=False
                )
                axes.annotate(
                    str(lost),
                    (x, 1.03),
                    xycoords=above,
                    xytext=(6, -3),
                    textcoords="offset points",
                    color=COLOURS[1],
                    annotation_clip=False,
                )
        axes.plot(*zip(*line, strict=True), "o-", lw=1.3, ms=5.5, color=COLOURS[0], zorder=3)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel(drawable(name, 60))
        axes.set_ylabel("validation loss (nats/char)")
        svg = to_svg(figure, prefix="factor", label=f"Loss against {name}")
    caption = (
        "Line: means over the seeds that are done; bars: 95% intervals (wide ones are cut off); "
        "dots: single seeds."
    )
    if num_lost:
        caption += " Crosses at the top: number of runs that diverged or failed."
    if max(losses) > scale.high:
        caption += " Triangles: seeds with a loss above the axis."
    return Chart(f"Loss against {name}", caption, svg)


def _set_scale(axes: "Axes", configurations: Sequence[Configuration], name: str) -> None:
    """Uses a logarithmic axis if that suits the values; a few values become the ticks."""
    values = [float(value) for value in levels_of(configurations, name).values()]
    is_log = is_geometric(values)
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    if len(values) <= 8 and (is_log or np.allclose(np.diff(values), values[1] - values[0])):
        axes.set_xticks(values, [setting_text(each, name) for each in configurations])
        axes.minorticks_off()


def _grid_chart(summaries: Sequence[Summary], names: Sequence[str]) -> Chart:
    """Returns a heat map, with the setting that has more levels on the vertical axis."""
    import matplotlib

    configurations = [each.configuration for each in summaries]
    sizes = {name: len(levels_of(configurations, name)) for name in names}
    side, top = sorted(names, key=lambda name: -sizes[name])
    rows, columns = (list(levels_of(configurations, name)) for name in (side, top))
    means = np.full((len(rows), len(columns)), np.nan)
    texts = np.full(means.shape, "", dtype=object)
    for each in summaries:
        settings, runs = each.configuration.settings, each.configuration.runs
        at = rows.index(setting_key(settings, side)), columns.index(setting_key(settings, top))
        if each.loss:
            means[at] = each.loss.mean
            mark = "†" if len(each.configuration.done) < len(runs) else ""
            texts[at] = f"{each.loss.mean:.3f}{mark}"
        else:
            texts[at] = "none\ndone"
    present = means[np.isfinite(means)].tolist()
    scale = range_of(present)
    with drawing():
        figure, axes = make_figure(height=max(2.4, 0.36 * len(rows) + 0.8))
        image = axes.imshow(
            np.ma.masked_invalid(means),
            cmap=matplotlib.colormaps["cividis_r"],
            vmin=scale.low,
            vmax=scale.low + scale.span,
            aspect="auto",
        )
        for (row, column), text in np.ndenumerate(texts):
            colour = MUTED
            if np.isfinite(means[row, column]):
                rgb = np.array(image.cmap(image.norm(means[row, column])))[:3]
                colour = "black" if rgb @ [0.3, 0.59, 0.11] > 0.5 else "white"
            if len(columns) <= 8:
                axes.text(column, row, text, ha="center", va="center", color=colour, size=8)
        axes.set_xticks(range(len(columns)), _texts(configurations, top, longest=11))
        axes.set_yticks(range(len(rows)), _texts(configurations, side, longest=18))
        axes.tick_params(length=0)
        if len(columns) > 8:
            axes.tick_params(axis="x", rotation=90)
        axes.set_xlabel(drawable(top, 50))
        axes.set_ylabel(drawable(side, 30))
        axes.spines[:].set_visible(False)
        extend = "max" if max(present) > scale.high else "neither"
        figure.colorbar(image, ax=axes, label="nats/char", extend=extend)
        svg = to_svg(figure, prefix="grid", label=f"Mean loss by {side} and {top}")
    caption = "Mean loss over the seeds that are done; lighter is better."
    if any("†" in text for text in texts.flat):
        caption += " †: not all runs are done."
    if "" in texts:
        caption += " Empty: not in the sweep."
    return Chart(f"Loss by {side} and {top}", caption, svg)


def _texts(configurations: Sequence[Configuration], name: str, *, longest: int) -> list[str]:
    """Returns the levels of a setting, in order, as labels."""
    texts = {setting_key(each.settings, name): setting_text(each, name) for each in configurations}
    return [drawable(texts[key], longest) for key in levels_of(configurations, name)]


def _parallel_chart(summaries: Sequence[Summary], names: Sequence[str]) -> Chart:
    """Returns parallel axes: each configuration is a line through its settings to its loss."""
    configurations = [each.configuration for each in summaries]
    means = {index: each.loss.mean for index, each in enumerate(summaries) if each.loss}
    scale = range_of(list(means.values()))
    columns = [_column(configurations, name) for name in names]
    with drawing():
        figure, axes = make_figure(height=4.2, width=max(10.6, 1.4 * (len(names) + 1)))
        for index, mean in means.items():
            heights = [column.heights[index] for column in columns]
            heights.append(max(0.0, 1 - (mean - scale.low) / scale.span))
            if index < NUM_BEST:
                label = f"#{index + 1}"
                axes.plot(heights, lw=1.6, ms=6, label=label, zorder=3, **style_of(index))
            else:
                axes.plot(heights, lw=0.7, color=MUTED, alpha=0.45)
        box = {"facecolor": SURFACE, "alpha": 0.75, "pad": 0.6, "lw": 0}
        for x, column in enumerate(columns):
            axes.axvline(x, color=MUTED, lw=0.8, zorder=0)
            for height, text in column.ticks:
                axes.text(x + 0.02, height, text, va="center", size=8, bbox=box, zorder=4)
        axes.axvline(len(columns), color=INK, lw=1.2, zorder=0)
        beyond = "≥ " if max(means.values()) > scale.high else ""
        axes.text(len(columns) + 0.03, 1, f"{scale.low:.3f}", va="center")
        axes.text(len(columns) + 0.03, 0, f"{beyond}{scale.low + scale.span:.3f}", va="center")
        labels = [drawable(name, max(12, 100 // len(names))) for name in names]
        axes.set_xticks(range(len(columns) + 1), [*labels, "mean loss"])
        axes.set_yticks([])
        axes.set_xlim(-0.15, len(columns) + 0.3)
        axes.set_ylim(-0.06, 1.06)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.legend(loc="outside upper center", ncols=NUM_BEST)
        svg = to_svg(figure, prefix="parallel", label="Settings and loss of configurations")
    caption = (
        "Each line is a configuration, from its settings to its mean loss in nats/char, the lowest "
        f"at the top; the best {min(NUM_BEST, len(means))} are highlighted. Configurations without "
        "a run that is done have no line."
    )
    return Chart("Settings and loss", caption, svg, is_wide=True)


class _Column(NamedTuple):
    heights: list[float]  # one for each configuration, 0 to 1
    ticks: list[tuple[float, str]]


def _column(configurations: Sequence[Configuration], name: str) -> _Column:
    """Places numbers by size, on a logarithmic scale if that is more even, and others evenly."""
    levels = levels_of(configurations, name)
    places = np.arange(len(levels), dtype=float)
    if is_numeric(configurations, name):
        places = np.array([float(value) for value in levels.values()])
        places = np.log(places) if is_geometric(places.tolist()) else places
    places = (places - places.min()) / (np.ptp(places) or 1.0)
    by_key = dict(zip(levels, places.tolist(), strict=True))
    heights = [by_key[setting_key(each.settings, name)] for each in configurations]
    ticks = list(zip(places.tolist(), _texts(configurations, name, longest=16), strict=True))
    return _Column(heights, ticks if len(ticks) <= 6 else [min(ticks), max(ticks)])
