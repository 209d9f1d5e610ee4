"""`Plan`: the settings of a search, checked before anything is written. Does not need Optuna."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax.config import diff, override_values, validate
from charrnn_jax.errors import UserError
from charrnn_jax.sweeps.space import Values

Space = Mapping[str, Values]

REDUCTION_FACTOR = 3  # ASHA: the best third of the trials continue after evaluations 1, 3, 9, ...


@dataclass(frozen=True)
class Plan:
    """The settings of a search, without the budget, which may grow.

    Attributes:
      config: config of the experiment; its seed is also the seed of the sampler.
      space: values of each field, as returned by `get_search`.
      sampler: "tpe" or "random".
      pruner: "asha" or "none".
      experiment: command-line arguments that make the config.
    """

    config: ConfigDict
    space: Space
    sampler: str
    pruner: str
    experiment: Sequence[str]

    def describe(self) -> list[str]:
        """Returns the sampler and the pruner in one line, then one line for each field."""
        pruner = "no pruning"
        if self.pruner == "asha":
            rungs = ", ".join(str(REDUCTION_FACTOR**rung) for rung in range(3))
            pruner = (
                f"ASHA pruning (after evaluations {rungs}, ... only the best "
                f"1/{REDUCTION_FACTOR} of the trials so far continue)"
            )
        head = f"{self.sampler} search with {pruner}, seed {self.config.seed}, over"
        return [head, *(f"{name}: {values}" for name, values in self.space.items())]

    def changes(self, new: "Plan") -> list[str]:
        """Returns the changes that make a new plan a different search, as texts."""
        changes = diff(self.config, new.config)
        for name in ("sampler", "pruner", "space"):
            if getattr(self, name) != getattr(new, name):
                changes[name] = getattr(self, name), getattr(new, name)
        return [f"{name} {before!r} -> {after!r}" for name, (before, after) in changes.items()]


def make_plan(
    config: ConfigDict, space: Any, *, sampler: str, pruner: str, experiment: Sequence[str] = ()
) -> Plan:
    """Makes a plan from what `get_search` returned; see `Plan`.

    Raises:
      UserError: it returned no space, or an end of a range is not a valid value of its field.
    """
    if not isinstance(space, dict) or not space:
        raise UserError(
            "get_search must return a dict such as "
            "{'optimizer.learning_rate': space.loguniform(1e-4, 1e-1)}"
        )
    for name, values in space.items():
        if not isinstance(name, str):
            raise UserError(f"get_search sets {name!r}: give a field such as 'model.cell'")
        if not isinstance(values, Values):
            raise UserError(
                f"get_search: {name} is {values!r}; make it with space.uniform, space.loguniform, "
                "space.integers or space.choice"
            )
        for value in values.ends():
            validate(override_values(config, {name: value}))
    if not config.data.validation_fraction:
        raise UserError("a search compares validation losses: set config.data.validation_fraction")
    return Plan(config, space, sampler, pruner, tuple(experiment))
