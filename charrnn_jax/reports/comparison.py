"""The page of `charrnn compare`: losses, differences and curves of several runs."""

from collections.abc import Sequence
from pathlib import Path

from charrnn_jax.config import flatten
from charrnn_jax.evaluation.breakdown import Group
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.files import replacing
from charrnn_jax.reports.document import (
    Cell,
    Document,
    Mark,
    Quote,
    Section,
    Table,
    to_html,
)
from charrnn_jax.reports.run.figures import make_charts_together
from charrnn_jax.reports.run.history import read_history
from charrnn_jax.workdir.compare import COMPARES_RUNS, LETTERS, Comparison, Pair
from charrnn_jax.workdir.run import Run

MAX_EXCERPTS = 9


def write_comparison(found: Comparison, runs: Sequence[Run], file: Path) -> None:
    """Writes the page, which replaces the file whole.

    Args:
      found: what `compare` has found.
      runs: the same runs, in the same order.
      file: path of the page.

    Raises:
      UserError: the rows of a run cannot be read.
    """
    pair = found.ranked_pairs()[0]
    document = Document(
        title=f"Comparison of {len(runs)} runs",
        overview=[
            f"Text: {_text_of(runs)}. {found.split} split, {found.protocol}, the same "
            f"{found.num_chars:,} {found.noun} for every run.",
            COMPARES_RUNS,
        ],
        sections=[
            _losses_section(found, runs),
            _pairs_section(found),
            *_details(pair, found),
            _config_section(runs),
        ],
        charts=make_charts_together(
            {LETTERS[number]: read_history(run.workdir) for number, run in enumerate(runs)},
            unit=found.unit,
        ),
    )
    with replacing(file) as partial:
        partial.write_text(
            to_html(document), encoding="utf-8", errors="backslashreplace", newline="\n"
        )


def _text_of(runs: Sequence[Run]) -> str:
    """Returns the text in words; that of an imported model is not its own."""
    for run in runs:
        if not run.imported:
            return run.corpus.without_folders().describe()
    return "a given one"


def _names_of(runs: Sequence[Run]) -> list[str]:
    """Returns the last parts of the workdirs, as many as tell them apart."""
    paths = [run.workdir.resolve() for run in runs]
    for num_parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-num_parts:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _losses_section(found: Comparison, runs: Sequence[Run]) -> Section:
    rows = []
    names = _names_of(runs)
    for letter, name, scored, run in zip(LETTERS, names, found.runs, runs, strict=False):
        whole = CrossEntropy(scored.loss, 1)
        model = f"{run.model.cell}, {run.model.num_layers} x {run.model.hidden_size:,}"
        rows.append(
            [
                Cell(letter),
                Cell(name),
                Cell(model),
                Cell(f"{scored.step:,}", scored.step),
                Cell(f"{scored.loss:.4f}", scored.loss),
                Cell(f"{scored.standard_error:.4f}", scored.standard_error),
                Cell(f"{whole.bits_per_char:.4f}", scored.loss),
            ]
        )
    unit = found.unit
    columns = ["", "Run", "Model", "Step", f"Nats/{unit}", "Standard error", f"Bits/{unit}"]
    return Section("Losses", [], [Table(columns, rows)])


def _pairs_section(found: Comparison) -> Section:
    rows = []
    for pair in found.pairs:
        each = pair.difference
        rows.append(
            [
                Cell(_name_of(pair)),
                Cell(f"{each.mean:+.4f}", each.mean),
                Cell(f"{each.low:+.4f}, {each.high:+.4f}", each.mean),
                Cell(f"{pair.corrected_p:.2g}", pair.corrected_p),
                Cell(pair.describe(LETTERS, unit=found.unit)),
            ]
        )
    p = f"p, corrected for {len(rows)} pairs" if len(rows) > 1 else "p"
    columns = ["Runs", f"Difference, nats/{found.unit}", "95% interval", p, "In words"]
    return Section("Differences", [], [Table(columns, rows)])


def _details(pair: Pair, found: Comparison) -> list[Section]:
    """Returns where the difference of the best two runs comes from."""
    if not pair.excerpts:  # no character has another loss
        return []
    kinds: dict[str, list[Group]] = {}
    for group in pair.groups:
        kinds.setdefault(group.kind, []).append(group)
    first, second = LETTERS[pair.first], LETTERS[pair.second]
    columns = [found.noun.capitalize(), first, second, f"{first} - {second}", "Standard error"]
    tables = [
        Table([kind.capitalize(), *columns], [_group_row(group) for group in groups])
        for kind, groups in kinds.items()
    ]
    quotes = [
        Quote(
            f"{each.nats:+.2f} nats, at {each.start:,}",
            each.before + each.passage + each.after,
            [Mark(len(each.before), len(each.passage), f"{_name_of(pair)}: {each.nats:+.2f} nats")],
        )
        for each in pair.excerpts[:MAX_EXCERPTS]
    ]
    title = f"Where {first} and {second} differ"
    power = pair.describe_power(LETTERS, unit=found.unit)
    passages = f"Marked: the passages with the largest {_name_of(pair)}, in nats."
    return [
        Section(title, [power], tables),
        Section("Passages", [passages], quotes=quotes),
    ]


def _group_row(group: Group) -> list[Cell]:
    (first, second), error = group.losses, group.standard_error
    return [
        Cell(group.name),
        Cell(f"{group.num_chars:,}", group.num_chars),
        Cell(f"{first:.4f}", first),
        Cell(f"{second:.4f}", second),
        Cell(f"{first - second:+.4f}", first - second),
        Cell("" if error is None else f"{error:.4f}", error),
    ]


def _config_section(runs: Sequence[Run]) -> Section:
    configs = [flatten(run.config_without_folders()) for run in runs]
    rows = [
        [Cell(name), *(Cell(repr(config.get(name))) for config in configs)]
        for name in configs[0]
        if len({repr(config.get(name)) for config in configs}) > 1
    ]
    if not rows:
        return Section("Config", ["All fields of the configs are equal."])
    table = Table(["Field", *LETTERS[: len(runs)]], rows)
    return Section("Config", ["Fields that differ between the runs."], [table])


def _name_of(pair: Pair) -> str:
    return f"{LETTERS[pair.first]} - {LETTERS[pair.second]}"
