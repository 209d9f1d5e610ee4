"""`TimeLimit`: training that ends when its seconds are over, instead of after a number of steps.

After the last step, the model is evaluated, sampled from and saved, so steps must end earlier. What
follows the last step is estimated from what the same took before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TimeLimit:
    """How much of a training is over, by the clock.

    Attributes:
      max_seconds: seconds of the whole training; 0: there is no limit.
      hook_seconds: seconds that each hook took the last time, by name. A hook that has not been
        called yet counts as nothing.
      call_seconds: seconds of the last call of the device, unless it compiled.
      ended: the limit that ended training; 0: none has.
    """

    max_seconds: float
    hook_seconds: dict[str, float] = field(default_factory=dict)
    call_seconds: float = 0.0
    ended: float = 0.0

    @classmethod
    def resume(cls, max_seconds: float, saved: Mapping[str, Any] | None) -> "TimeLimit":
        """Returns a limit with what `to_dict` of the same run saved, if anything."""
        return cls(max_seconds, **{**(saved or {}), "call_seconds": 0.0})

    def to_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as plain data for JSON."""
        return {"hook_seconds": self.hook_seconds, "ended": self.ended}

    def fraction(self, seconds: float) -> float:
        """Returns the share of the time for steps that is over, at most 1; without a limit, 0.

        Args:
          seconds: seconds from the start of the run to that of the next call.
        """
        if not self.max_seconds:
            return 0.0
        # One call is still running, and there must be time for another.
        steps_end = self.max_seconds - sum(self.hook_seconds.values()) - 2 * self.call_seconds
        return min(seconds / steps_end, 1.0) if steps_end > 0 else 1.0

    def has_ended(self, seconds: float) -> bool:
        """Returns whether a run with this limit has nothing left to train.

        Args:
          seconds: seconds that the run had taken when it was saved.
        """
        return 0 < self.max_seconds <= max(self.ended, seconds)
