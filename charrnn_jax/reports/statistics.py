"""Results of the runs of a sweep."""

from dataclasses import dataclass
from typing import Any

STATUSES = ("done", "diverged", "failed", "running", "waiting", "pruned")


@dataclass(frozen=True)
class Result:
    """What one run gave."""

    name: str
    settings: dict[str, Any]
    status: str
    loss: float | None
    best_loss: float | None
    curve: tuple[tuple[int, float], ...]
    num_params: int | None
    seconds: float | None
    message: str = ""
