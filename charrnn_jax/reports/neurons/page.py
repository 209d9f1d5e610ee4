"""`write_neurons_page`: a text on a page, each character coloured by a unit that one chooses.

The page has the output of every unit, and the carry and the gates of the units in its list, in
whole numbers from -15 to 15, compressed. Texts are untrusted: they are data, or escaped.
"""

import base64
import math
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from charrnn_jax.evaluation.recording import record
from charrnn_jax.evaluation.surprise import Likeliest, find_likeliest
from charrnn_jax.evaluation.units import FOLLOWED, ProbeScore, UnitScore
from charrnn_jax.files import replacing
from charrnn_jax.models.inside import OUTPUT
from charrnn_jax.reports.document import (
    SCRIPT,
    STYLE,
    Cell,
    Quote,
    Table,
    html_quotes,
    html_table,
)
from charrnn_jax.reports.page import make_page
from charrnn_jax.workdir.neurons import Atlas, Clamped, Written
from charrnn_jax.workdir.run import Run

_FOLDER = Path(__file__).parent
_MOST_SHOWN = 4000  # characters
_MOST_BYTES = 2_900_000  # of the page, which shows less of the text if it would be larger
_LEVELS = 15  # of a unit's colour, in each direction
_NUM_LIKELIEST = 5
_LONGEST_LINE = 200  # characters that are left out so that the text starts with a line


class _Shown(NamedTuple):
    """What the page shows of the first N characters of a text.

    Attributes:
      start: position of the first one in the text of the atlas.
      values: {name: [N, L, H]}, of the output, the carry and the gates.
      likeliest: what was likely after each.
    """

    start: int
    values: dict[str, np.ndarray]
    likeliest: Likeliest


def write_neurons_page(atlas: Atlas, file: str | Path) -> None:
    """Writes the units of a run as one HTML file, of less than 3 MB.

    It shows the half of the text that scored the units, from its first whole line on.

    Args:
      atlas: the units, as returned by `neurons`.
      file: path of the HTML file; an existing file is replaced.
    """
    shown = _record_shown(atlas)
    num_shown = len(shown.likeliest.ids)
    while len(page := _make_page(atlas, shown, num_shown=num_shown)) > _MOST_BYTES:
        num_shown = int(num_shown * 0.95 * _MOST_BYTES / len(page))
    with replacing(Path(file)) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _make_page(atlas: Atlas, shown: _Shown, *, num_shown: int) -> str:
    run = atlas.run
    title = f"Hidden units of {run.workdir.resolve().name}"
    half = len(atlas.text) // 2
    body = f"""\
<main>
<header>
<h1>{escape(title)}</h1>
<p>Step {run.step:,}, {escape(run.model.cell)}, {run.model.num_layers} x
{run.model.hidden_size:,} units, {escape(_text_of(run))}</p>
</header>
{(_FOLDER / "page.html").read_text(encoding="utf-8")}
<section><h2>What the units follow</h2>
<p>The first {half:,} characters of the {escape(atlas.split)} split chose the best units for each
probe; the other {len(atlas.text) - half:,} scored them. AUC: the probability that the unit is
higher (“high”) or lower (“low”) at a character where the probe is true than at one where it is
not. A probe of numbers is true above its median. Null: what 5% of all circular shifts of the probe
exceed. p: the share of the shifts that reach the AUC, with Holm's correction for all units that
were scored. Bits: mutual information of unit and probe, and the entropy of the probe. Linear: the
AUC of a weighted sum of all units of the layer. Character: the AUC of the character alone, without
the model: of how often the probe is true there.</p>
{html_table(_units_table(atlas))}
<p>{escape(verdicts(atlas.probes))}</p>
{html_table(_probes_table(atlas.probes))}</section>
{_clamped_section(atlas.clamped)}</main>"""
    return make_page(
        body,
        title=title,
        style=STYLE + (_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=SCRIPT + (_FOLDER / "page.js").read_text(encoding="utf-8"),
        data=_data(atlas, shown, num_shown=num_shown),
    )


def _text_of(run: Run) -> str:
    if run.imported:  # its own text is not known
        return "on a given text"
    return run.corpus.without_folders().describe()


def verdicts(probes: Sequence[ProbeScore]) -> str:
    """Returns who follows which probes, in sentences."""
    found: dict[str, list[str]] = {}
    for probe in probes:
        found.setdefault(probe.verdict, []).append(f"'{probe.name}'")
    sentences = {
        "one unit": f"A single unit follows {{}} with an AUC of at least {FOLLOWED:g}.",
        "many units": "No single unit follows {}, but many together do.",
        "in part": "Units follow {} in part.",
        "the character": "Units say no more about {} than the character itself.",
        "nothing": "Nothing follows {} more than chance.",
        "too rare": "Too rare in this text to say: {}.",
        "too short": "The text is too short for p to be low, whoever follows {}: read more of it.",
    }
    return " ".join(
        sentence.format(", ".join(found[verdict]))
        for verdict, sentence in sentences.items()
        if verdict in found
    )


def criterion(probe: ProbeScore) -> str:
    """Returns when a probe is true: its name, and for one of numbers, above which."""
    return probe.name if probe.criterion is None else f"{probe.name} > {probe.criterion:.3g}"


def _units_table(atlas: Atlas) -> Table:
    by_name = {probe.name: probe for probe in atlas.probes}
    clamped = {(each.unit.layer, each.unit.unit): each for each in atlas.clamped}
    columns = ["unit", "is", "where", "AUC", "null", "p", "bits", "of", "linear", "character"]
    rows = []
    for unit in atlas.best:
        probe = by_name[unit.probe]
        row = [*_unit_cells(unit), Cell(criterion(probe)), *_score_cells(unit, probe)]
        if each := clamped.get((unit.layer, unit.unit)):
            row += [_rate_cell(written) for written in (each.low, each.free, each.high)]
        rows.append(row)
    if atlas.clamped:
        columns += ["true, held low", "free", "held high"]
    return Table(columns, rows)


def _probes_table(probes: Sequence[ProbeScore]) -> Table:
    columns = ["probe", "true", "followed by", "best unit", "is", "AUC", "null", "p", "bits", "of"]
    rows = []
    for probe in probes:
        about = [
            Cell(criterion(probe)),
            Cell(f"{probe.share:.1%}", probe.share),
            Cell(probe.verdict),
        ]
        if probe.units:
            unit = probe.units[0]
            found = [*_unit_cells(unit), *_score_cells(unit, probe)]
        else:
            found = [Cell("")] * 9
        rows.append([*about, *found])
    return Table([*columns, "linear", "character"], rows)


def _unit_cells(unit: UnitScore) -> list[Cell]:
    return [Cell(f"{unit.layer}:{unit.unit}"), Cell("high" if unit.sign > 0 else "low")]


def _score_cells(unit: UnitScore, probe: ProbeScore) -> list[Cell]:
    return [
        Cell(f"{unit.auc:.3f}", unit.auc),
        Cell(f"{unit.null:.3f}", unit.null),
        Cell(f"{unit.corrected_p:.2g}", unit.corrected_p),
        Cell(f"{unit.information:.3f}", unit.information),
        Cell(f"{probe.entropy:.3f}", probe.entropy),
        Cell(f"{unit.linear_auc:.3f}", unit.linear_auc),
        Cell(f"{probe.character_auc:.3f}", probe.character_auc),
    ]


def _rate_cell(written: Written) -> Cell:
    return Cell(f"{written.rate:.1%} ± {written.standard_error:.1%}", written.rate)


def _clamped_section(clamped: Sequence[Clamped]) -> str:
    if not clamped:
        return ""
    parts, clearest = [], max(clamped, key=_effect)
    for each in clamped:
        unit = each.unit
        quotes = [
            Quote(
                f"{name if written.value is None else f'held at {written.value:.2f}'}: "
                f"{unit.probe} in {written.rate:.1%} ± {written.standard_error:.1%}",
                written.text,
            )
            for name, written in zip(
                ("", "free", ""), (each.low, each.free, each.high), strict=True
            )
        ]
        summary = escape(f"{unit.layer}:{unit.unit}, {unit.probe}")
        is_open = " open" * (each is clearest)
        parts.append(
            f"<details{is_open}><summary>{summary}</summary>{html_quotes(quotes)}</details>"
        )
    return f"""\
<section><h2>What the units do</h2>
<p>The model writes with one unit held low, free, and held high, each time from the same seed. The
number is the share of the characters where the probe is true, with its standard error over all
texts that were written; one of them is shown. A probe that such text cannot change much, as the
position in the line, says little here.</p>
{"".join(parts)}</section>
"""


def _effect(each: Clamped) -> float:
    """Returns the difference of the rates with the unit held high and low, in standard errors."""
    error = math.hypot(each.low.standard_error, each.high.standard_error)
    return abs(each.high.rate - each.low.rate) / error if error else 0.0


# --- data for the script ------------------------------------------------------------------------


def _record_shown(atlas: Atlas) -> _Shown:
    run, half = atlas.run, len(atlas.text) // 2
    line_break = atlas.text.find("\n", half - 1, half - 1 + _LONGEST_LINE)
    start = half if line_break < 0 else line_break + 1
    stop = min(start + _MOST_SHOWN, len(atlas.text))
    first = int(atlas.ends[start - 1]) + 1
    ends = atlas.ends[start:stop] - first
    carry, _ = record(run.params, atlas.tokens[:first], model=run.model)
    piece = atlas.tokens[first : first + int(ends[-1]) + 1]
    _, values = record(run.params, piece, model=run.model, carry=carry, with_values=True)
    likeliest = find_likeliest(
        run.params,
        np.append(piece, piece[-1]),  # whose last token is only a target
        model=run.model,
        num=min(_NUM_LIKELIEST, run.vocabulary.size),
        carry=carry,
    )
    return _Shown(
        start,
        {name: array[ends] for name, array in values.items()},
        Likeliest(likeliest.ids[ends], likeliest.probabilities[ends]),
    )


def _data(atlas: Atlas, shown: _Shown, *, num_shown: int) -> dict[str, Any]:
    run, part = atlas.run, slice(shown.start, shown.start + num_shown)
    values = {name: array[:num_shown] for name, array in shown.values.items()}
    ids, probabilities = (array[:num_shown] for array in shown.likeliest)
    by_name = {probe.name: probe for probe in atlas.probes}
    listed = sorted({(unit.layer, unit.unit) for p in atlas.probes for unit in p.units})
    layers, units = ([place[i] for place in listed] for i in (0, 1))
    names = [name for name in values if name != OUTPUT]
    return {
        "text": atlas.text[part],
        "layers": run.model.num_layers,
        "units": run.model.hidden_size,
        "outputs": _pack(values[OUTPUT].reshape(num_shown, -1)),
        "listed": listed,
        "best": [[u.layer, u.unit, criterion(by_name[u.probe])] for u in atlas.best],
        "values": {name: _pack(values[name][:, layers, units]) for name in names},
        "ranked": [
            {
                "probe": criterion(probe),
                "truth": "".join("01"[int(b)] for b in atlas.truths[probe.name][part]),
                "units": [
                    {"layer": u.layer, "unit": u.unit, "sign": u.sign, "auc": round(u.auc, 3)}
                    for u in probe.units
                ],
            }
            for probe in atlas.probes
        ],
        "num": ids.shape[1],
        "likeliest": ids.ravel().tolist(),
        "shares": np.round(probabilities.ravel() * 1000).astype(int).tolist(),
        "symbols": _symbols(atlas),
    }


def _pack(values: np.ndarray) -> dict[str, Any]:
    """Returns numbers [N, K] as levels of the largest of each column, one column after another."""
    scales = np.abs(values).max(axis=0, initial=0)
    levels = np.rint(values / np.where(scales > 0, scales, 1) * _LEVELS).astype(np.int8)
    packed = zlib.compress(np.ascontiguousarray(levels.T).tobytes(), 9)
    return {
        "levels": base64.b64encode(packed).decode(),
        "scales": [float(f"{scale:.4g}") for scale in scales],
    }


def _symbols(atlas: Atlas) -> list[str]:
    """Returns how each id is shown: a character, or a byte by its number if it is none alone."""
    vocabulary = atlas.run.vocabulary
    symbols = [vocabulary.decode([i]) for i in range(vocabulary.size)]
    if vocabulary.kind == "bytes":
        symbols = [s if s != "\ufffd" else f"0x{i - 1:02X}" for i, s in enumerate(symbols)]
    return symbols
