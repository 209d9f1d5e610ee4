"""`EarlyStopping`: training that ends when the validation loss no longer improves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from charrnn_jax.processes import from_first


@dataclass
class EarlyStopping:
    """The best validation loss so far, and how long ago it was.

    Attributes:
      patience: number of evaluations without a new best loss after which training ends; 0: it does
        not end early.
      best_step: step of the best loss; 0: there was none.
      best_loss: the best loss, in nats/char; None: there was none.
      num_since: number of evaluations since.
    """

    patience: int
    best_step: int = 0
    best_loss: float | None = None
    num_since: int = 0

    @classmethod
    def resume(cls, patience: int, saved: Mapping[str, Any] | None) -> "EarlyStopping":
        """Returns what `to_dict` of the same run saved, if anything, with this patience."""
        return cls(patience, **(saved or {}))

    def to_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as plain data for JSON."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "num_since": self.num_since,
        }

    def add(self, step: int, loss: float) -> None:
        """Adds an evaluation. All processes must call it; the loss of the first counts.

        Args:
          step: number of steps done.
          loss: validation loss, in nats/char.
        """
        if self.patience:
            loss = from_first(lambda: loss)
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_step, self.best_loss, self.num_since = step, loss, 0
        else:
            self.num_since += 1

    @property
    def is_over(self) -> bool:
        """Whether training ends."""
        return 0 < self.patience <= self.num_since

    def describe(self, unit: str) -> str:
        """Returns why training has ended.

        Args:
          unit: what a loss is counted per, "char" or "byte".
        """
        best = (
            f"the best was {self.best_loss:.4f} nats/{unit} after step {self.best_step:,}"
            if self.best_loss is not None
            else "none was finite"
        )
        return f"{self.num_since} evaluations in a row had no new best validation loss; {best}"
