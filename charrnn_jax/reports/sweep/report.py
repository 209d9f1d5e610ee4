"""The report of a sweep: a web page, the same tables as Markdown, the runs as CSV, and a figure.

This file knows nothing about how runs are made.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charrnn_jax.files import replacing
from charrnn_jax.reports.document import Cell, Document, Section, Table, to_html, to_markdown
from charrnn_jax.reports.sweep.effects import (
    Decomposition,
    changes_text,
    decompose,
    is_number,
    setting_text,
    value_text,
)
from charrnn_jax.reports.sweep.factor_figures import make_factor_charts
from charrnn_jax.reports.sweep.figures import make_run_charts, write_paper_figure
from charrnn_jax.reports.sweep.methods import METHODS
from charrnn_jax.reports.sweep.statistics import (
    MISSING,
    STATUSES,
    Configuration,
    Interval,
    Result,
    Summary,
    is_sparse,
    summarize,
    varying,
)

NATS_PER_BIT = math.log(2)
_MAX_LEVELS = 12  # factors with more levels are not listed
_SHARED = "Explained equally well by more than one setting; 0 in a full grid."


def write_sweep_report(
    results: Sequence[Result],
    folder: Path,
    *,
    title: str,
    protocol: str,
    baseline: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes sweep.html, sweep.md, sweep.csv, sweep.pdf and sweep.svg; each is replaced whole.

    Args:
      results: results of all runs of the sweep, including failed and waiting ones.
      folder: folder to write to; created if it does not exist.
      title: title of the report.
      protocol: description of how the losses were measured.
      baseline: settings that exactly one configuration has; None: those of the first result.
      notes: further remarks, one paragraph each.

    Raises:
      UserError: there are no results, or the baseline does not match exactly one configuration.
      ValueError: a status is not one of `STATUSES`.
    """
    for result in results:
        if result.status not in STATUSES:
            raise ValueError(f"{result.name}: status {result.status!r}, not one of {STATUSES}")
    summaries = summarize(results, baseline)
    document = Document(
        title=title,
        overview=_overview(results, summaries, notes),
        sections=_sections(results, summaries, protocol),
        charts=[*make_run_charts(summaries), *make_factor_charts(summaries)],
    )
    texts = {
        "sweep.html": to_html(document),
        "sweep.md": to_markdown(document),
        "sweep.csv": _csv(results),
    }
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            # A path may contain bytes that are not text, which are shown as escapes.
            partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    for format in ("pdf", "svg"):
        with replacing(folder / f"sweep.{format}") as partial:
            write_paper_figure(partial, summaries, format=format)


# --- text ---------------------------------------------------------------------------------------


def _overview(
    results: Sequence[Result], summaries: Sequence[Summary], notes: Sequence[str]
) -> list[str]:
    paragraphs = [
        f"{_plural(len(results), 'run')} of {_plural(len(summaries), 'configuration')}: "
        f"{_count_text(results)}."
    ]
    best = summaries[0]
    if best.loss is None:
        paragraphs.append("No run is done with a loss yet, so there is nothing to compare.")
    else:
        mean, num = best.loss.mean, best.loss.num
        certainty = f", 95% interval {_interval_text(best.loss)} over {num} seeds"
        paragraphs.append(
            f"Lowest mean: #1{_describe(best.configuration, summaries)} with {mean:.4f} nats/char "
            f"({mean / NATS_PER_BIT:.4f} bits/char)"
            f"{certainty if num > 1 else ', from a single seed'}. "
            f"{_compared_text(best, summaries)}".strip()
        )
    num_open = sum(result.status in ("running", "waiting") for result in results)
    if num_open:
        paragraphs.append(
            f"The sweep is not finished: {_plural(num_open, 'run')} still to come. All numbers "
            "here may change, and stopping because they look good would bias the result."
        )
    return paragraphs + [f"Note: {note}" for note in notes]


def _compared_text(best: Summary, summaries: Sequence[Summary]) -> str:
    if len(summaries) == 1:
        return ""
    if best.is_baseline:
        return "It is the baseline."
    if best.comparison is None:
        return "No seed is done in both this configuration and the baseline."
    difference, p, corrected = best.comparison
    text = f"Against the baseline: {difference.mean:+.4f}"
    if p is None or corrected is None:
        return f"{text}; no test is possible."
    text += f", 95% interval {_interval_text(difference, '+.4f')}"
    judged = "significant" if best.comparison.is_significant else "not significant"
    return f"{text}; p {_p_text(p)}, corrected {_p_text(corrected)}: {judged} at 0.05."


def _sections(
    results: Sequence[Result], summaries: Sequence[Summary], protocol: str
) -> list[Section]:
    sections = [_configurations_section(results, summaries)]
    configurations = [each.configuration for each in summaries]
    names, sparse = varying(configurations), is_sparse(configurations)
    lost = [result for result in results if result.status in ("diverged", "failed")]
    if lost:
        table = Table(
            ["Run", "Status", "Why"],
            [[Cell(run.name), Cell(run.status), Cell(run.message or MISSING)] for run in lost],
        )
        sections.append(Section("Runs that diverged or failed", [], [table], fold=len(lost) > 12))
    if names and not sparse and any(each.loss for each in summaries):
        sections.append(_effects_section(decompose(configurations)))
    sections.append(Section("How to read this", _methods(summaries, protocol)))
    ranks = {id(run): i for i, s in enumerate(summaries, 1) for run in s.configuration.runs}
    columns = ["Run", "#", *_setting_columns(configurations), "seed", "Status"]
    columns += ["Loss", "Lowest loss", "Bits/char", "Parameters", "Seconds", "Message"]
    rows = [
        [
            Cell(run.name),
            _number(ranks[id(run)], "d"),
            *_setting_cells(run.settings, configurations),
            _setting(run.settings, "seed"),
            Cell(run.status),
            _number(run.loss, ".4f"),
            _number(run.best_loss, ".4f"),
            _number(_to_bits(run.loss), ".4f"),
            _number(run.num_params, ",d"),
            _number(run.seconds, ",.0f"),
            Cell(run.message),
        ]
        for run in results
    ]
    return [*sections, Section("All runs", [], [Table(columns, rows)], fold=True)]


def _configurations_section(results: Sequence[Result], summaries: Sequence[Summary]) -> Section:
    configurations = [each.configuration for each in summaries]
    names = varying(configurations)
    lost = [
        status
        for status in ("diverged", "failed")
        if any(result.status == status for result in results)
    ]
    rows = []
    for rank, each in enumerate(summaries, 1):
        runs, done = each.configuration.runs, each.configuration.done
        losses = list(each.configuration.losses.values())
        mean = each.loss.mean if each.loss else None
        params = [run.num_params for run in runs if run.num_params is not None]
        seconds = [run.seconds for run in done if run.seconds is not None]
        counts = Counter(run.status for run in runs)
        mark = " †" if len(done) < len(runs) else ""
        rows.append(
            [
                _number(rank, "d"),
                *_setting_cells(each.configuration.settings, configurations),
                Cell(f"{len(done)}/{len(runs)}{mark}", len(done)),
                *(_number(counts[status], "d") for status in lost),
                _number(mean, ".4f"),
                _interval(each.loss, ".4f"),
                *_comparison_cells(each),
                _number(_to_bits(mean), ".4f"),
                _number(min(losses, default=None), ".4f"),
                _number(max(losses, default=None), ".4f"),
                _number(params[0] if params else None, ",d"),
                _number(sum(seconds) / len(seconds) if seconds else None, ",.0f"),
            ]
        )
    columns = ["#", *_setting_columns(configurations), "Done", *map(str.capitalize, lost)]
    columns += [
        "Loss",
        "95% interval",
        "Δ to baseline",
        "95% interval of Δ",
        "p",
        "p (Holm)",
        "Significant",
    ]
    columns += ["Bits/char", "Min", "Max", "Parameters", "Seconds"]
    paragraphs = [
        "Sorted by mean validation loss in nats/char; lower is better. Δ: the configuration minus "
        "the baseline, paired by seed. n/a: not available, such as an interval from a single seed."
    ]
    if any(len(each.done) < len(each.runs) for each in configurations):
        paragraphs.append(
            "†: not all runs are done. The numbers are from the runs that are, so a configuration "
            "whose worst runs failed looks better than it is."
        )
    fixed = [name for name in configurations[0].settings if name not in names]
    if fixed:
        values = [f"{name} = {setting_text(configurations[0], name)}" for name in fixed]
        paragraphs.append(f"The same in all configurations: {', '.join(values)}.")
    return Section("Configurations", paragraphs, [Table(columns, rows)])


def _effects_section(parts: Decomposition) -> Section:
    shares = [[Cell(each.name), _percent(each.share), Cell(each.note)] for each in parts.effects]
    if len(parts.effects) > 1:
        rest = "effects that do not simply add up, and chance"
        shares += [
            [Cell("shared"), _percent(parts.shared), Cell(_SHARED)],
            [Cell("remainder"), _percent(parts.remainder), Cell(f"Interactions: {rest}.")],
        ]
    seeds = "Runs that differ only in the seed."
    paragraphs = ["Shares of the variance of the loss, over the runs that are done."]
    if parts.remainder is None:
        paragraphs.append("All losses are equal, so there is no variance to explain.")
    elif parts.seeds is None:
        seeds += " No configuration has two, so the other shares include the effect of the seed."
    shares.append([Cell("seeds"), _percent(parts.seeds), Cell(seeds)])
    tables = [Table(["Source", "Share of variance", "Remarks"], shares)]
    listed = [each for each in parts.effects if len(each.levels) <= _MAX_LEVELS]
    if len(parts.effects) > 1 and listed:
        levels = [
            [
                Cell(effect.name),
                Cell(level.text),
                Cell(f"{level.num_done}/{level.num_runs}", level.num_done),
                _number(level.loss.mean if level.loss else None, ".4f"),
                _interval(level.loss, ".4f"),
            ]
            for effect in listed
            for level in effect.levels
        ]
        tables.append(Table(["Setting", "Value", "Done", "Mean loss", "95% interval"], levels))
        paragraphs.append(
            "Mean loss at each value, with the other settings as they are in this sweep. Error "
            f"estimate for the intervals: {parts.error}."
        )
        if len(listed) < len(parts.effects):
            paragraphs.append(f"Settings with more than {_MAX_LEVELS} values are not listed.")
    return Section("Effects of the settings", paragraphs, tables)


def _methods(summaries: Sequence[Summary], protocol: str) -> list[str]:
    nums = sorted({each.loss.num for each in summaries if each.loss}) or [0]
    seeds = f"{nums[0]}" if nums[0] == nums[-1] else f"{nums[0]} to {nums[-1]}"
    num_tests = sum(
        each.comparison is not None and each.comparison.p is not None for each in summaries
    )
    return [
        f"Protocol: {protocol}",
        f"In this report: seeds that are done, for each configuration with any: {seeds}; paired t "
        f"tests: {num_tests}.",
        *METHODS,
    ]


def _describe(configuration: Configuration, summaries: Sequence[Summary]) -> str:
    names = varying([each.configuration for each in summaries])
    text = changes_text(configuration.settings, names)
    return f" ({'no changes' if text == 'none' else text})" if names else ""


def _count_text(results: Sequence[Result]) -> str:
    counts = Counter(result.status for result in results)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _to_bits(nats: float | None) -> float | None:
    return None if nats is None else nats / NATS_PER_BIT


def _interval_text(interval: Interval | None, form: str = ".4f") -> str:
    if interval is None or interval.low is None or interval.high is None:
        return "n/a"
    return f"[{_format(interval.low, form)}, {_format(interval.high, form)}]"


def _format(value: float, form: str) -> str:
    """Formats a number; a loss that exploded is shown without all its digits."""
    return format(value, form if abs(value) < 1e6 or form.endswith("d") else ".3e")


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


# --- cells --------------------------------------------------------------------------------------


def _number(value: float | None, form: str) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("n/a" if value is None else str(value))
    return Cell(_format(value, form), value)


def _setting_columns(configurations: Sequence[Configuration]) -> list[str]:
    return ["Changes"] if is_sparse(configurations) else varying(configurations)


def _setting_cells(
    settings: Mapping[str, Any], configurations: Sequence[Configuration]
) -> list[Cell]:
    names = varying(configurations)
    if is_sparse(configurations):
        return [Cell(changes_text(settings, names))]
    return [_setting(settings, name) for name in names]


def _setting(settings: Mapping[str, Any], name: str) -> Cell:
    if name not in settings:
        return Cell(MISSING)
    value = settings[name]
    return Cell(value_text(value), float(value) if is_number(value) else None)


def _comparison_cells(summary: Summary) -> list[Cell]:
    if summary.is_baseline:
        return [Cell("baseline", 0.0), *[Cell("")] * 4]
    if summary.comparison is None:
        return [Cell("n/a")] * 5
    difference, p, corrected = summary.comparison
    judged = "yes" if summary.comparison.is_significant else "no"
    return [
        _number(difference.mean, "+.4f"),
        _interval(difference, "+.4f"),
        _p(p),
        _p(corrected),
        Cell("n/a" if corrected is None else judged),
    ]


def _interval(interval: Interval | None, form: str) -> Cell:
    return Cell(_interval_text(interval, form), interval.low if interval else None)


def _p(p: float | None) -> Cell:
    return Cell("n/a") if p is None else Cell(_p_text(p).removeprefix("= "), p)


def _percent(share: float | None) -> Cell:
    return Cell("n/a") if share is None else Cell(f"{share:.1%}", share)


# --- the runs -----------------------------------------------------------------------------------


def _csv(results: Sequence[Result]) -> str:
    """Returns one row for each run, with numbers in full precision and missing values empty."""
    names = list(dict.fromkeys(name for result in results for name in result.settings))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ["status", "loss", "best_loss", "bits", "num_params", "seconds", "message"]
    writer.writerow(["name", *names, *columns])
    for run in results:
        settings = [str(run.settings[name]) if name in run.settings else "" for name in names]
        numbers = [run.loss, run.best_loss, _to_bits(run.loss), run.num_params, run.seconds]
        writer.writerow([run.name, *settings, run.status, *numbers, run.message])
    return buffer.getvalue()
