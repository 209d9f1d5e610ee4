"""The report on a sweep, from what its work units have left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from charrnn_jax.evaluation.protocols import describe
from charrnn_jax.reports.sweep.report import write_sweep_report
from charrnn_jax.reports.sweep.scaling import can_fit, describe_scaling_law
from charrnn_jax.sweeps.units import WorkUnit, read_corpora

_OF_SCALING = {
    "seed",
    *("model.embedding_size", "model.hidden_size", "model.num_layers"),
    *("train.num_steps", "train.num_epochs"),
}


def write_report(
    units: Sequence[WorkUnit],
    workdir: Path,
    *,
    baseline: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes sweep.html, sweep.md, sweep.csv, sweep.pdf and sweep.svg; see `write_sweep_report`.

    Args:
      units: of the sweep; they are evaluated by the protocol of the first one.
      workdir: of the sweep.
      baseline: settings of the configuration to compare with; None: that of the first unit.
      notes: sentences for the report.

    Raises:
      UserError: there is no such baseline.
    """
    settings = units[0].config.evaluation
    corpora = read_corpora(units)
    texts = [f"Text: {'; '.join(corpora)}."] if corpora else []
    if len(corpora) > 1:
        warning = "WARNING: these runs were trained on DIFFERENT texts and cannot be compared"
        texts = [f"{warning}: {'; '.join(corpora)}."]
    write_sweep_report(
        [unit.read_result() for unit in units],
        workdir,
        title=workdir.resolve().name,
        protocol=describe(settings.protocol, window=settings.window),
        baseline=baseline,
        notes=[*texts, *notes, *_scaling_law(units)],
    )


def _scaling_law(units: Sequence[WorkUnit]) -> list[str]:
    """A sentence on how the loss falls with size and length, if the sweep varied both enough."""
    if not {name for unit in units for name in unit.overrides} <= _OF_SCALING:
        return []  # it would be one law for different families
    rows = []
    for unit in units:
        result, data = unit.read_result(), unit.config.data
        if result.status == "done" and result.loss is not None:
            num_chars = result.curve[-1][0] * data.batch_size * data.sequence_length
            rows.append((result.num_params, num_chars, result.loss))
    if not rows:
        return []
    num_params, num_chars, losses = map(np.array, zip(*rows, strict=True))
    if not can_fit(num_params, num_chars):
        return []
    return [describe_scaling_law(num_params, num_chars, losses=losses)]
