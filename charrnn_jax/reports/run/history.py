"""`read_history`: what a run has recorded while it trained, few enough points for a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from charrnn_jax.workdir.json_lines import read_json_lines, read_number
from charrnn_jax.workdir.sessions import Session, read_sessions

MAX_POINTS = 600  # of a curve
CURVES = (
    "train/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "train/update_ratio",
    "train/chars_per_second",
    "train/peak_memory",
)


@dataclass(frozen=True)
class Curve:
    """A metric over the steps; long ones are means over groups of neighbouring rows.

    Attributes:
      steps: [N] steps.
      values: [N] values, all finite.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Sampled:
    """A text that was written while training: the first of its step."""

    step: int
    prompt: str
    text: str
    temperature: float


@dataclass(frozen=True)
class History:
    """What a run has recorded.

    Attributes:
      curves: name of a metric -> curve, for those of `CURVES` that have values.
      validation: validation loss in nats/char.
      protocol: protocol of the validation loss; "": not measured.
      samples: first text of each step that has any, in order.
      sessions: processes that trained the run; none if an earlier version did.
      last_step: step of the last row; 0 if there is none.
      epoch: epochs until then.
      seconds: seconds from the start of the run until then, without interruptions.
    """

    curves: Mapping[str, Curve]
    validation: Curve
    protocol: str
    samples: Sequence[Sampled]
    sessions: Sequence[Session]
    last_step: int
    epoch: float
    seconds: float


def read_history(workdir: Path) -> History:
    """Reads the rows of a run; damaged lines are skipped, and missing files are empty.

    Raises:
      UserError: a file cannot be read.
    """
    rows = read_json_lines(workdir / "metrics.jsonl")
    samples: dict[int, Sampled] = {}
    for row in read_json_lines(workdir / "samples.jsonl"):
        prompt, text = row.get("prompt"), row.get("text")
        if isinstance(prompt, str) and isinstance(text, str):
            warmth = read_number(row, "temperature")
            samples.setdefault(row["step"], Sampled(row["step"], prompt, text, warmth or 0.0))
    last: dict[str, Any] = rows[-1] if rows else {}
    protocols = [row["validation/protocol"] for row in rows if "validation/protocol" in row]
    curves = {name: _thinned(_curve(rows, name)) for name in CURVES}
    return History(
        curves={name: curve for name, curve in curves.items() if len(curve.steps)},
        validation=_curve(rows, "validation/loss"),
        protocol=str(protocols[-1]) if protocols else "",
        samples=list(samples.values()),
        sessions=list(read_sessions(workdir)),
        last_step=last.get("step", 0),
        epoch=read_number(last, "epoch") or 0.0,
        seconds=read_number(last, "seconds") or 0.0,
    )


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> Curve:
    points = [(row["step"], value) for row in rows if (value := read_number(row, name)) is not None]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return Curve(steps, values)


def _thinned(curve: Curve) -> Curve:
    """Returns a curve of at most `MAX_POINTS` points."""
    if len(curve.steps) <= MAX_POINTS:
        return curve
    groups = np.linspace(0, len(curve.steps), MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*groups, len(curve.steps)])
    return Curve(
        np.add.reduceat(curve.steps, groups) / sizes, np.add.reduceat(curve.values, groups) / sizes
    )
