"""`SweepTable`: the progress of a running sweep, shown to the user.

Everything is read from the work units' folders, wherever the workers run. On a terminal the table
is live; otherwise a line is printed for every unit that ends.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from charrnn_jax.messages import format_seconds, printable
from charrnn_jax.sweeps.units import ENDED, WorkUnit
from charrnn_jax.workdir.json_lines import read_json_lines, read_number

_MOST_ROWS = 20  # running units shown


class SweepTable:
    """A table of the units of a sweep; `update` reads their progress.

    Args:
      units: all units, or the units made so far, which may grow.
      num_units: number of units in the end; None: `units` has all of them.
      console: console that shows the table.
    """

    def __init__(
        self,
        units: Sequence[WorkUnit],
        *,
        num_units: int | None = None,
        console: Console | None = None,
    ):
        self._units = units
        self._num_units = num_units or 0
        # Rich would take FORCE_COLOR, which notebooks set, for a terminal.
        self._console = console or Console(force_terminal=sys.stdout.isatty())
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._told = {unit.name for unit in units if unit.read_status()["status"] in ENDED}
        self._started = time.monotonic()
        self._at_start: float | None = None  # units of work done at the first update

    def __enter__(self) -> "SweepTable":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Shows the current progress of the units."""
        now = {unit.name: unit.read_status() for unit in self._units}
        for unit in self._units:
            if now[unit.name]["status"] in ENDED and unit.name not in self._told:
                self._told.add(unit.name)
                text = printable(_describe(unit), self._console.file)
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        if self._live.is_started:
            self._live.update(self._table({name: at["status"] for name, at in now.items()}))
            self._live.refresh()

    def _table(self, statuses: dict[str, str]) -> Table:
        table = Table(title=self._summary(statuses), title_justify="left", box=None)
        for column in ("running", "done", "train loss", "validation"):
            table.add_column(column, justify="left" if column == "running" else "right")
        running = [unit for unit in self._units if statuses[unit.name] == "running"]
        for unit in running[:_MOST_ROWS]:
            rows = read_json_lines(unit.workdir / "metrics.jsonl")
            losses = [_last(rows, f"{split}/loss") for split in ("train", "validation")]
            # The first row comes only after the program is compiled, which can take minutes.
            done = f"{fraction_trained(unit, rows):.0%}" if rows else "compiling"
            # As `Text`, since a name may have what looks like markup.
            table.add_row(Text(printable(unit.name, self._console.file)), done, *losses)
        if len(running) > _MOST_ROWS:
            table.add_row(f"and {len(running) - _MOST_ROWS} more")
        return table

    def _summary(self, statuses: dict[str, str]) -> str:
        work = 0.0
        for unit in self._units:
            status = statuses[unit.name]
            work += 1.0 if status in ENDED else 0.0
            if status == "running":
                work += fraction_trained(unit, read_json_lines(unit.workdir / "metrics.jsonl"))
        if self._at_start is None:
            self._at_start = work
        num_to_come = max(self._num_units - len(statuses), 0)
        text = describe_counts([*statuses.values(), *["waiting"] * num_to_come])
        if work > self._at_start:
            pace = (time.monotonic() - self._started) / (work - self._at_start)
            text += f"; about {format_seconds(pace * (len(statuses) + num_to_come - work))} left"
        return text


def describe_counts(statuses: Sequence[str]) -> str:
    """Returns how many units have which status.

    >>> describe_counts(["done", "done", "failed", "running"])
    '2 of 4 done, 1 failed, 1 running'
    """
    counts = Counter(statuses)
    others = (f", {count} {status}" for status, count in sorted(counts.items()) if status != "done")
    return f"{counts['done']} of {len(statuses)} done" + "".join(others)


def _describe(unit: WorkUnit) -> str:
    result = unit.read_result()
    text = f"{result.status}: {unit.name}"
    if result.loss is not None:
        text += f", validation loss {result.loss:.4f} nats/char"
    if result.seconds is not None:
        text += f", {format_seconds(result.seconds)}"
    return f"{text} ({result.message})" if result.message else text


def fraction_trained(unit: WorkUnit, rows: Sequence[dict[str, Any]]) -> float:
    """Returns how much of a unit's training is done, from 0 to 1, judged by its metrics rows."""
    if not rows:
        return 0.0
    last, train = rows[-1], unit.config.train
    if train.num_steps:
        part = last["step"] / train.num_steps
    else:
        part = (read_number(last, "epoch") or 0.0) / train.num_epochs
    if train.max_seconds:
        part = max(part, (read_number(last, "seconds") or 0.0) / train.max_seconds)
    return min(max(part, 0.0), 1.0)


def _last(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [value for row in rows if (value := read_number(row, name)) is not None]
    return f"{values[-1]:.4f}" if values else ""
