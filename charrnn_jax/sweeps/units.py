"""Work units: the runs of a sweep, each with its config, its workdir and where it stands.

A sweep's folder holds `sweep.json` (what was swept), `units/<name>/` (the workdir of each run, with
a `unit.json` that says how it ended) and the report.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax.config import diff, from_dict, from_json, override_values, validate
from charrnn_jax.data.dataset import describe_corpus
from charrnn_jax.errors import UserError
from charrnn_jax.files import lock, replacing
from charrnn_jax.reports.sweep.statistics import Result
from charrnn_jax.sweeps.hyper import Overrides
from charrnn_jax.training.checkpoints import read_metadata, steps
from charrnn_jax.training.json_lines import read_json_lines
from charrnn_jax.training.resume import check_same_run

SEARCH_FILE = "search.journal"  # in a sweep's folder: its units are the trials of a search
_STATUS_FILE = "unit.json"
ENDED = ("done", "diverged", "failed", "pruned")
# A run may be gone on with under other values of these, but then is not what a sweep compares.
_FIXED = ("optimizer.", "train.num_steps", "train.num_epochs")
# Losses under different values of these must not be compared.
_COMPARED = ("data.validation_fraction", "data.test_fraction", "evaluation.")


@dataclass(frozen=True)
class WorkUnit:
    """One run of a sweep.

    Attributes:
      index: its place in the sweep, from 0.
      name: made of its overrides, so it stays the same when the sweep grows.
      overrides: {"section.field": value}
      config: with the overrides.
      workdir: of the run.
    """

    index: int
    name: str
    overrides: Overrides
    config: ConfigDict
    workdir: Path

    def is_done(self) -> bool:
        """Whether it was trained to the end, and with this config."""
        return self.read_status()["status"] == "done" and self.has_ended()

    def has_ended(self) -> bool:
        """Whether it was trained with this config and came to an end, good or bad."""
        saved = self.read_status()
        return saved["status"] in ENDED and saved["config"] == self.config.to_dict()

    def read_status(self) -> dict[str, Any]:
        """Returns {"status": one of `STATUSES`, "message": why, "config": it was trained with}."""
        status = {"status": "waiting", "message": "", "config": None}
        try:
            return status | json.loads((self.workdir / _STATUS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):  # not there, or no JSON object
            return status

    def write_status(self, status: str, *, message: str = "") -> None:
        """Says where it stands."""
        written = {"status": status, "message": message, "config": self.config.to_dict()}
        with replacing(self.workdir / _STATUS_FILE) as partial:
            partial.write_text(json.dumps(written) + "\n", encoding="utf-8")

    def read_result(self) -> Result:
        """Returns what is known of it now."""
        rows = read_json_lines(self.workdir / "metrics.jsonl")
        curve = tuple(
            (row["step"], row["validation/loss"])
            for row in rows
            if isinstance(row.get("validation/loss"), float)
        )
        losses = [loss for _, loss in curve]
        saved = steps(self.workdir)
        metadata = read_metadata(self.workdir, saved[-1]) if saved else {}
        status = self.read_status()
        return Result(
            name=self.name,
            settings=self.overrides,
            loss=losses[-1] if losses else None,
            best_loss=min(losses, default=None),
            curve=curve,
            num_params=metadata.get("num_params"),
            seconds=rows[-1].get("seconds") if rows else None,
            status=status["status"],
            message=status["message"],
        )


def make_units(config: ConfigDict, sweep: Sequence[Overrides], *, workdir: Path) -> list[WorkUnit]:
    """Makes the work units of a sweep.

    Args:
      config: of the experiment, to which the overrides of every unit are applied.
      sweep: what `get_hyper` returned.
      workdir: of the sweep.

    Raises:
      UserError: no list of overrides, an override that is none, or two units that are the same.
    """
    if not isinstance(sweep, Sequence) or not all(isinstance(item, dict) for item in sweep):
        raise UserError("get_hyper must return a list of dicts such as {'model.cell': 'gru'}")
    if wrong := [name for overrides in sweep for name in overrides if not isinstance(name, str)]:
        raise UserError(f"get_hyper sets {wrong[0]!r}: fields are named as 'model.cell'")
    swept = {name for overrides in sweep for name in overrides}
    short = Counter(map(_last, swept))
    units: dict[str, WorkUnit] = {}
    for index, overrides in enumerate(sweep):
        unit_config = override_values(config, overrides)
        name = _name({_last(n) if short[_last(n)] == 1 else n: v for n, v in overrides.items()})
        if name in units:
            raise UserError(
                f"get_hyper returned {name} twice, as units {units[name].index}, {index}"
            )
        try:
            validate(unit_config)
        except UserError as error:
            raise UserError(f"work unit {index}, {name}: {error}") from error
        units[name] = WorkUnit(index, name, overrides, unit_config, workdir / "units" / name)
    if not units:
        raise UserError("get_hyper returned no work units")
    first, *others = units.values()
    for other in others:
        for field in diff(first.config, other.config):
            if field.startswith(_COMPARED) and field != "evaluation.batch_size":
                raise UserError(f"get_hyper varies {field}: losses could not be compared then")
    return list(units.values())


def save_sweep(workdir: Path, *, config: ConfigDict, sweep: Sequence[Overrides]) -> None:
    """Writes `sweep.json`, from which `load_sweep` makes the units again."""
    saved = {"config": config.to_dict(), "sweep": list(sweep)}
    with replacing(workdir / "sweep.json") as partial:
        partial.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def load_sweep(workdir: str | Path) -> list[WorkUnit]:
    """Opens a sweep; `load_run(unit.workdir)` opens the run of a unit, `read_result` its losses.

    Raises:
      UserError: there is no sweep.
    """
    file = Path(workdir) / "sweep.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        config = from_dict(saved["config"])
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir} holds no sweep: there is no {file} to read") from error
    return make_units(config, saved["sweep"], workdir=Path(workdir))


def check_workdirs(units: Sequence[WorkUnit]) -> None:
    """Raises UserError if a unit's workdir holds a run that this sweep may not go on with."""
    for unit in units:
        file = unit.workdir / "config.json"
        if not (file.is_file() and steps(unit.workdir)):
            continue
        old = from_json(file.read_text(encoding="utf-8"))
        check_same_run(old, unit.config, unit.workdir)
        for field, (before, after) in diff(old, unit.config).items():
            if field.startswith(_FIXED):
                raise UserError(
                    f"{unit.workdir} was trained with {field} {before!r}, not {after!r}: give "
                    "another --workdir, or the same config"
                )


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Keeps other launchers away from a sweep's folder.

    Raises:
      BusyError: one has it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor = lock(workdir, doing="running a sweep")
    try:
        yield
    finally:
        os.close(descriptor)


def read_corpora(units: Sequence[WorkUnit]) -> list[str]:
    """Returns what the units were trained on, in words: one line if it is one text for all."""
    texts = {}
    for unit in units:
        if saved := steps(unit.workdir):
            corpus = read_metadata(unit.workdir, saved[-1])["corpus"]
            texts[corpus["sha256"], corpus["num_chars"]] = describe_corpus(corpus)
    return sorted(texts.values())


def _last(field: str) -> str:
    return field.split(".")[-1]


def _name(overrides: Overrides) -> str:
    """Names and values, fit for a folder: cell=gru,seed=0."""
    full = ",".join(f"{name}={value}" for name, value in overrides.items())
    name = re.sub(r"[^\w.=,+-]", "_", full).encode()[:120].decode(errors="ignore") or "default"
    exact = json.dumps(overrides, default=str)
    return name if name == full else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
