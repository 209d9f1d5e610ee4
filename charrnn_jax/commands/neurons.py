"""`charrnn neurons`: which hidden units follow what, and what they do, as tables and as a page."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    moved_text_flag,
    only_warning,
    open_run,
    path,
    positive,
)
from charrnn_jax.errors import UserError, shortened
from charrnn_jax.messages import NOTES, show

if TYPE_CHECKING:
    from charrnn_jax.evaluation.units import ProbeScore, UnitScore
    from charrnn_jax.workdir.neurons import Atlas

_WIDTH = 100
_PROBE_WIDTH = 28  # of a probe in the tables

_LEGEND = (
    "null: AUC that 5% of the circular shifts of the probe exceed. p: share of the shifts that "
    "reach the AUC, with Holm's correction. bits: mutual information, of the entropy of the probe. "
    "linear: AUC of all units of the layer together. char: AUC of the character alone. held: share "
    "of generated text where the probe is true while the unit is held, and its standard error."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the run, the text, the probes and the page."""
    checkpoint_flags(parser)
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument(
        "--num_chars",
        type=positive,
        default=40_000,
        metavar="N",
        help="characters from the start of the split; default: 40000",
    )
    parser.add_argument(
        "--probe",
        action="append",
        default=[],
        type=_own_probe,
        metavar="NAME=REGEX",
        help="also look for units that follow the matches of a regular expression; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="page to write; default: neurons.html in the workdir",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the tables, and writes the page."""
    names = [name for name, _ in args.probe]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--probe={repeated[0]}=... is given twice: choose another name")
    trained = open_run(args, overrides)
    from charrnn_jax.evaluation.probes import make_probe
    from charrnn_jax.reports.neurons.page import write_neurons_page
    from charrnn_jax.workdir.neurons import neurons

    probes = {name: make_probe(pattern) for name, pattern in args.probe}
    atlas = neurons(
        trained, split=args.split, num_chars=args.num_chars, probes=probes, path=args.path
    )
    if args.json:
        show(json.dumps(atlas.to_dict(), indent=2))
    else:
        for line in _report(atlas):
            show(line)
    file = args.output or trained.workdir / "neurons.html"
    # A workdir that cannot be written is no error: the tables are printed.
    forgiving = only_warning(file, remedy="give --output")
    with contextlib.nullcontext() if args.output else forgiving:
        write_neurons_page(atlas, file)
        NOTES.info(f"Page: {file}")


def _own_probe(text: str) -> tuple[str, str]:
    """caps=[A-Z]+ -> ("caps", "[A-Z]+")"""
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=REGEX, such as digits=[0-9]+")
    return name, pattern


def _report(atlas: "Atlas") -> Iterator[str]:
    from charrnn_jax.reports.neurons.page import verdicts

    half, by_name = len(atlas.text) // 2, {probe.name: probe for probe in atlas.probes}
    yield (
        f"{atlas.split}, {len(atlas.text):,} characters: units are chosen on the first {half:,} "
        "and scored on the others"
    )
    heading = f"{'AUC':>7}{'null':>7}{'p':>9}{'bits':>7} {'of':7}{'linear':>6}{'char':>7}"
    place = f"{'unit':9}{'is':6}{'where':{_PROBE_WIDTH}}"
    yield f"\n{place}{heading}"
    for unit in atlas.best:
        yield _row(by_name[unit.probe], unit)
    if atlas.clamped:
        yield f"\n{place}{'held low':>17}{'free':>17}{'held high':>17}"
        for each in atlas.clamped:
            rates = "".join(
                f"{f'{written.rate:.1%} ± {written.standard_error:.1%}':>17}"
                for written in (each.low, each.free, each.high)
            )
            yield f"{_place(by_name[each.unit.probe], each.unit)}{rates}"
    yield f"\n{'best':9}{'is':6}{'where':{_PROBE_WIDTH}}{heading}  followed by"
    for probe in atlas.probes:
        row = _row(probe, probe.units[0]) if probe.units else f"{'':15}{_where(probe):78}"
        yield f"{row}  {probe.verdict}"
    yield ""
    yield from wrap(verdicts(atlas.probes), _WIDTH)
    yield ""
    yield from wrap(_LEGEND, _WIDTH)


def _row(probe: "ProbeScore", unit: "UnitScore") -> str:
    return (
        f"{_place(probe, unit)}{unit.auc:7.3f}{unit.null:7.3f}{unit.corrected_p:9.2g}"
        f"{unit.information:7.3f} {probe.entropy:<7.3f}{unit.linear_auc:6.3f}"
        f"{probe.character_auc:7.3f}"
    )


def _place(probe: "ProbeScore", unit: "UnitScore") -> str:
    side = "high" if unit.sign > 0 else "low"
    return f"{f'{unit.layer}:{unit.unit}':9}{side:6}{_where(probe):{_PROBE_WIDTH}}"


def _where(probe: "ProbeScore") -> str:
    from charrnn_jax.reports.neurons.page import criterion

    return shortened(criterion(probe), length=_PROBE_WIDTH - 1)
