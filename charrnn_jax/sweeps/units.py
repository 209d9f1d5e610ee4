"""Work units: the runs of a sweep, each with its config, its workdir and its status.

A sweep's folder holds `sweep.json` (the config and the overrides), `units/<name>/` (the workdir of
each run, with its status in `unit.json`) and the report.
"""

import contextlib
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.config import Saved, diff, from_dict, override_values, validate
from charrnn_jax.data.batches import chars_per_row
from charrnn_jax.errors import UserError, shown
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.files import replacing
from charrnn_jax.models.char_rnn import check_model
from charrnn_jax.reading import Scalar, read_json
from charrnn_jax.reports.sweep.report import write_sweep_report
from charrnn_jax.reports.sweep.statistics import Result
from charrnn_jax.sweeps.hyper import Overrides
from charrnn_jax.training.setup import stages_of
from charrnn_jax.workdir.checkpoints import read_metadata, steps
from charrnn_jax.workdir.json_lines import read_json_lines, read_number
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.resume import check_same_run

SEARCH_FILE = "search.journal"  # marks a sweep's folder whose units are the trials of a search
_STATUS_FILE = "unit.json"
_MAX_SWEEP_BYTES = 1 << 22  # of sweep.json: tens of thousands of units
ENDED = ("done", "diverged", "failed", "pruned")
# A run may be resumed with other values of these fields, but a sweep could not compare it then.
_FIXED = (
    *("optimizer.", "train.num_steps", "train.num_epochs", "train.max_seconds"),
    *("train.patience", "train.ema_decay", "train.tail_fraction"),
)
# Losses under different values of these fields cannot be compared.
_COMPARED = ("data.validation_fraction", "data.test_fraction", "evaluation.")
# A scaling law is fitted to a sweep that varies only these fields.
_OF_SCALING = {
    *("seed", "model.embedding_size", "model.hidden_size", "model.num_layers"),
    *("train.num_steps", "train.num_epochs"),
}


class Status(TypedDict):
    """The status of a work unit, as in its `unit.json`.

    Attributes:
      status: "waiting", "running" or one of `ENDED`.
      message: why the unit failed, diverged or was pruned.
      config: config that it was trained with; None: it was not started.
    """

    status: Literal["waiting", "running", "done", "diverged", "failed", "pruned"]
    message: str
    config: Saved | None


class _Sweep(TypedDict):
    """What `save_sweep` writes."""

    config: Saved
    sweep: list[dict[str, Scalar]]


@dataclass(frozen=True)
class WorkUnit:
    """One run of a sweep.

    Attributes:
      index: position in the sweep, from 0.
      name: name made from the overrides, so it stays the same when the sweep grows.
      overrides: values of config fields, {"section.field": value}.
      config: config with the overrides applied.
      workdir: folder of the run.
    """

    index: int
    name: str
    overrides: Overrides
    config: ConfigDict
    workdir: Path

    def is_done(self) -> bool:
        """Returns whether the unit was trained to the end with this config."""
        return self.read_status()["status"] == "done" and self.has_ended()

    def has_ended(self) -> bool:
        """Returns whether training with this config has ended, successfully or not."""
        saved = self.read_status()
        if saved["status"] not in ENDED or saved["config"] is None:
            return False
        try:  # fields added to the schema since get their defaults
            return from_dict(saved["config"]).to_dict() == self.config.to_dict()
        except UserError:
            return False

    def read_status(self) -> Status:
        """Returns the status; "waiting" if its file is missing or damaged."""
        status: Status = {"status": "waiting", "message": "", "config": None}
        with contextlib.suppress(UserError):  # missing, or damaged
            status |= read_json(self.workdir / _STATUS_FILE, Status, remedy="delete it")
        return status

    def write_status(self, status: str, *, message: str = "") -> None:
        """Writes the status of the unit."""
        written = {"status": status, "message": message, "config": self.config.to_dict()}
        with replacing(self.workdir / _STATUS_FILE) as partial:
            partial.write_text(json.dumps(written) + "\n", encoding="utf-8")

    def read_metadata(self) -> CheckpointMetadata | None:
        """Returns the metadata of the last checkpoint; None if there is none that can be read."""
        if not (saved := steps(self.workdir)):
            return None
        try:
            return read_metadata(self.workdir, saved[-1])
        except UserError as error:
            warnings.warn(f"{self.name}: {error}", stacklevel=2)
            return None

    def read_result(self) -> Result:
        """Returns the result of the unit so far."""
        rows = read_json_lines(self.workdir / "metrics.jsonl")
        curve = tuple(
            (row["step"], loss)
            for row in rows
            if (loss := read_number(row, "validation/loss")) is not None
        )
        losses = [loss for _, loss in curve]
        metadata = self.read_metadata()
        status = self.read_status()
        return Result(
            name=self.name,
            settings=self.overrides,
            loss=losses[-1] if losses else None,
            best_loss=min(losses, default=None),
            curve=curve,
            num_params=metadata.num_params if metadata else None,
            seconds=read_number(rows[-1], "seconds") if rows else None,
            status=status["status"],
            message=status["message"],
        )


def make_units(config: ConfigDict, sweep: Sequence[Overrides], *, workdir: Path) -> list[WorkUnit]:
    """Makes the work units of a sweep.

    Args:
      config: config of the experiment, to which the overrides of every unit are applied.
      sweep: overrides of each unit, as returned by `get_hyper`.
      workdir: folder of the sweep.

    Raises:
      UserError: `sweep` is not a list of overrides, an override is not valid, or two units are the
        same.
    """
    if not isinstance(sweep, Sequence) or not all(isinstance(item, dict) for item in sweep):
        raise UserError("get_hyper must return a list of dicts such as {'model.cell': 'gru'}")
    if wrong := [name for overrides in sweep for name in overrides if not isinstance(name, str)]:
        raise UserError(f"get_hyper sets {wrong[0]!r}: give a field such as 'model.cell'")
    swept = {name for overrides in sweep for name in overrides}
    short = Counter(map(_last, swept))
    units: dict[str, WorkUnit] = {}
    for index, overrides in enumerate(sweep):
        unit_config = override_values(config, overrides)
        name = _name({_last(n) if short[_last(n)] == 1 else n: v for n, v in overrides.items()})
        if name in units:
            raise UserError(
                f"get_hyper returned {name} twice, as units {units[name].index} and {index}"
            )
        try:
            validate(unit_config)
            check_model(unit_config.model)
        except UserError as error:
            raise UserError(f"work unit {index}, {name}: {error}") from error
        units[name] = WorkUnit(index, name, overrides, unit_config, workdir / "units" / name)
    if not units:
        raise UserError("get_hyper returned no work units")
    first, *others = units.values()
    for other in others:
        for field in diff(first.config, other.config):
            if field.startswith(_COMPARED) and field != "evaluation.batch_size":
                raise UserError(f"get_hyper varies {field}, so losses could not be compared")
    return list(units.values())


def save_sweep(workdir: Path, *, config: ConfigDict, sweep: Sequence[Overrides]) -> None:
    """Writes `sweep.json`, from which `load_sweep` makes the units."""
    saved = {"config": config.to_dict(), "sweep": list(sweep)}
    with replacing(workdir / "sweep.json") as partial:
        partial.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def load_sweep(workdir: str | Path) -> list[WorkUnit]:
    """Opens a sweep.

    `load_run(unit.workdir)` opens the run of a unit, and `unit.read_result()` reads its losses.

    Args:
      workdir: folder of the sweep.

    Raises:
      UserError: the folder holds no sweep.
    """
    file = Path(workdir) / "sweep.json"
    remedy = "start the sweep again with its --config, which writes it again"
    try:
        saved = read_json(file, _Sweep, remedy=remedy, max_bytes=_MAX_SWEEP_BYTES)
    except UserError as error:
        raise UserError(f"{workdir} holds no sweep: {error}") from error
    config = from_dict(saved["config"])
    return make_units(config, saved["sweep"], workdir=Path(workdir))


def check_workdirs(units: Sequence[WorkUnit]) -> None:
    """Raises UserError if a unit's workdir holds a run that this sweep may not resume."""
    for unit in units:
        if (saved := unit.read_metadata()) is None:
            continue
        old = from_dict(saved.config)
        check_same_run(old, unit.config, unit.workdir)
        for field, (before, after) in diff(old, unit.config).items():
            if field.startswith(_FIXED):
                raise UserError(
                    f"{unit.workdir} was trained with {field} {shown(before)}, not {shown(after)}: "
                    "give another --workdir, or the same config"
                )


def _last(field: str) -> str:
    return field.split(".")[-1]


def _name(overrides: Overrides) -> str:
    """Returns names and values as the name of a folder, such as cell=gru,seed=0."""
    full = ",".join(f"{name}={value}" for name, value in overrides.items())
    name = re.sub(r"[^\w.=,+-]", "_", full).encode()[:120].decode(errors="ignore") or "default"
    exact = json.dumps(overrides, default=str)
    return name if name == full else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def write_report(
    units: Sequence[WorkUnit],
    workdir: Path,
    *,
    baseline: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes the report of a sweep from the results of its units; see `write_sweep_report`.

    Args:
      units: all work units of the sweep, which have the same protocol.
      workdir: folder of the sweep.
      baseline: settings of the configuration to compare with; None: the first unit's.
      notes: sentences for the report.

    Raises:
      UserError: the baseline does not match exactly one configuration.
    """
    from charrnn_jax.sweeps.best_two import describe_best_two  # workers need no comparison

    protocol = make_protocol(units[0].config.evaluation)
    workdirs = {unit.name: unit.workdir for unit in units}
    results = [unit.read_result() for unit in units]
    write_sweep_report(
        results,
        workdir,
        title=workdir.resolve().name,
        protocol=f"{protocol.label}: {protocol.description}",
        baseline=baseline,
        notes=[
            *_describe_texts(units),
            *notes,
            *_scaling_law(units, results),
            *describe_best_two(results, workdirs, protocol=protocol),
        ],
    )


def _describe_texts(units: Sequence[WorkUnit]) -> list[str]:
    """Returns a sentence on the text that the units were trained on, or a warning about several."""
    corpora = {}
    for unit in units:
        if saved := unit.read_metadata():
            corpus = saved.corpus
            corpora[corpus.sha256, corpus.num_chars] = corpus.describe()
    texts = "; ".join(sorted(corpora.values()))
    if len(corpora) > 1:
        warning = "WARNING: these runs were trained on DIFFERENT texts and cannot be compared"
        return [f"{warning}: {texts}."]
    return [f"Text: {texts}."] if texts else []


def _scaling_law(units: Sequence[WorkUnit], results: Sequence[Result]) -> list[str]:
    """Returns a sentence on the scaling law, if the sweep varied size and length enough."""
    if not {name for unit in units for name in unit.overrides} <= _OF_SCALING:
        return []  # one law cannot describe several families of models
    rows = []
    for unit, result in zip(units, results, strict=True):
        if result.status == "done" and result.loss is not None:
            data = unit.config.data
            num_chars = data.batch_size * chars_per_row(stages_of(unit.config), result.curve[-1][0])
            rows.append((result.num_params, num_chars, result.loss))
    if not rows:
        return []
    # Imported here: scipy.optimize takes half a second, and every worker imports this file.
    from charrnn_jax.reports.sweep.scaling import can_fit, describe_scaling_law

    num_params, num_chars, losses = map(np.array, zip(*rows, strict=True))
    if not can_fit(num_params, num_chars):
        return []
    return [describe_scaling_law(num_params, num_chars, losses=losses)]
