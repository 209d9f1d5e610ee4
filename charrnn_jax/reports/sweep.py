"""A sweep's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charrnn_jax.reports.statistics import Result


def write_sweep_report(
    results: Sequence[Result],
    folder: Path,
    *,
    title: str,
    protocol: str,
    baseline: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes it."""
