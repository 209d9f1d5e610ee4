"""Statistics of the runs of a sweep: means over seeds, comparisons, effects of settings.

A *configuration* is the settings of a run without "seed". Its runs differ in their seeds, and the
seed is the sampling unit: runs with the same settings and seed count as one, by their mean. Losses
are in nats/char. This file knows nothing about how results are shown.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.comparison import holm

STATUSES = ("done", "diverged", "failed", "running", "waiting", "pruned")
MISSING = "—"  # shown for a setting that a run does not override


@dataclass(frozen=True)
class Result:
    """The result of one run, as far as it is known.

    Attributes:
      name: name of the work unit.
      settings: flat overrides, such as {"model.cell": "gru", "seed": 3}.
      status: one of `STATUSES`.
      loss: validation loss of the last evaluation, nats/char; None before the first one.
      best_loss: lowest validation loss, nats/char; None before the first evaluation.
      curve: (step, validation loss in nats/char) of each evaluation.
      num_params: number of model parameters; None if not known.
      seconds: training time; None if not known.
      message: why the run failed, diverged or was pruned.
    """

    name: str
    settings: dict[str, Any]
    status: str
    loss: float | None
    best_loss: float | None
    curve: tuple[tuple[int, float], ...]
    num_params: int | None
    seconds: float | None
    message: str = ""


class Interval(NamedTuple):
    """A mean and its 95% interval; `low` and `high` are None if there is none."""

    mean: float
    low: float | None
    high: float | None
    num: int


class Comparison(NamedTuple):
    """A configuration minus the baseline, paired by seed.

    Attributes:
      difference: mean difference over the seeds that both have, nats/char; below 0 is better than
        the baseline.
      p: two-sided p of the paired t test; None for fewer than two pairs or equal differences.
      corrected_p: p with Holm's correction over all comparisons that have a p.
    """

    difference: Interval
    p: float | None
    corrected_p: float | None

    @property
    def is_significant(self) -> bool:
        return self.corrected_p is not None and self.corrected_p < 0.05


@dataclass(frozen=True)
class Configuration:
    """Settings without the seed, and the runs that have them."""

    settings: dict[str, Any]
    runs: tuple[Result, ...]

    @property
    def done(self) -> tuple[Result, ...]:
        """Runs that are done and have a finite loss."""
        return tuple(
            run
            for run in self.runs
            if run.status == "done" and run.loss is not None and math.isfinite(run.loss)
        )

    @property
    def losses(self) -> dict[Hashable, float]:
        """Losses of the runs that are done, seed -> nats/char."""
        by_seed: dict[Hashable, list[float]] = {}
        for run in self.done:
            if run.loss is not None:
                by_seed.setdefault(setting_key(run.settings, "seed"), []).append(float(run.loss))
        return {seed: float(np.mean(losses)) for seed, losses in by_seed.items()}


@dataclass(frozen=True)
class Summary:
    """A configuration with its mean loss and its comparison with the baseline.

    Attributes:
      configuration: settings and runs.
      loss: mean loss over the seeds that are done, nats/char; None if no seed is done.
      comparison: comparison with the baseline; None for the baseline itself, and if no seed is done
        in both.
      is_baseline: whether this is the baseline.
    """

    configuration: Configuration
    loss: Interval | None
    comparison: Comparison | None
    is_baseline: bool


def key_of(value: Any) -> Hashable:
    """Returns a key, the same for equal settings: 1 and 1.0, (1, 2) and [1, 2]; not 1 and True."""
    if isinstance(value, Mapping):
        return "mapping", tuple(sorted((repr(key), key_of(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return "list", tuple(key_of(item) for item in value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return "number", value if value == value else "nan"
    return type(value).__name__, repr(value)


def setting_key(settings: Mapping[str, Any], name: str) -> Hashable:
    """Returns `key_of` a setting, or a separate key if the setting is missing."""
    return key_of(settings[name]) if name in settings else ("missing",)


def group(results: Sequence[Result]) -> list[Configuration]:
    """Returns the configurations in the order in which they first appear."""
    groups: dict[Hashable, list[Result]] = {}
    for result in results:
        settings = {name: value for name, value in result.settings.items() if name != "seed"}
        groups.setdefault(key_of(settings), []).append(result)
    return [
        Configuration(
            {name: value for name, value in runs[0].settings.items() if name != "seed"},
            tuple(runs),
        )
        for runs in groups.values()
    ]


def varying(configurations: Sequence[Configuration]) -> list[str]:
    """Returns the names of the settings that differ, in the order in which they first appear."""
    names = dict.fromkeys(name for each in configurations for name in each.settings)
    return [
        name
        for name in names
        if len({setting_key(each.settings, name) for each in configurations}) > 1
    ]


def is_sparse(configurations: Sequence[Configuration]) -> bool:
    """Returns whether many settings vary, each in few configurations, as in an ablation.

    A table then has one column for all of them, and no setting an effect of its own beside the
    difference to the baseline.
    """
    names = varying(configurations)
    num_set = sum(name in each.settings for each in configurations for name in names)
    return len(names) > 4 and num_set < len(names) * len(configurations) / 2


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Returns the mean with Student's t interval, mean ± t s / sqrt(n).

    t is the 97.5% quantile with n - 1 degrees of freedom.

    Args:
      values: finite numbers, assumed to be independent draws from one normal distribution.

    Returns:
      The interval, without limits for a single value; None if there are no values.
    """
    if not len(values):
        return None
    mean, num = float(np.mean(values)), len(values)
    if num == 1:
        return Interval(mean, None, None, num)
    half = float(stdtrit(num - 1, 0.975)) * _deviation(values) / math.sqrt(num)
    return Interval(mean, mean - half, mean + half, num)


def _deviation(values: Sequence[float]) -> float:
    """Returns the sample standard deviation of losses; 0 if they differ only by rounding."""
    deviation = float(np.std(values, ddof=1))
    return deviation if deviation > 1e-12 * max(1.0, float(np.max(np.abs(values)))) else 0.0


def paired_p(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p of the paired t test for a mean difference of 0.

    It is None where the test is undefined: with fewer than two pairs, or if all differences are
    equal, so that there is no spread to compare the mean with.
    """
    num = len(differences)
    if num < 2 or not (deviation := _deviation(differences)):
        return None
    t = float(np.mean(differences)) / (deviation / math.sqrt(num))
    return float(2 * stdtr(num - 1, -abs(t)))


def find_baseline(
    configurations: Sequence[Configuration], baseline: Mapping[str, Any] | None
) -> Configuration:
    """Returns the only configuration with the settings of `baseline`, or the first one for None.

    Raises:
      UserError: no configuration or several have these settings.
    """
    if baseline is None:
        return configurations[0]
    wanted = {name: value for name, value in baseline.items() if name != "seed"}
    found = [
        each
        for each in configurations
        if all(setting_key(each.settings, name) == key_of(wanted[name]) for name in wanted)
    ]
    if len(found) == 1:
        return found[0]
    names = varying(configurations)
    known = [
        repr({name: each.settings[name] for name in names if name in each.settings})
        for each in configurations[:10]
    ]
    more = f" and {len(configurations) - 10} more" if len(configurations) > 10 else ""
    raise UserError(
        f"the baseline {wanted!r} matches {len(found)} configurations of the sweep, but it must "
        f"match exactly one of: {'; '.join(known)}{more}"
    )


def summarize(results: Sequence[Result], baseline: Mapping[str, Any] | None) -> list[Summary]:
    """Returns the configurations by mean loss; the ones without a run that is done come last.

    Args:
      results: results of the runs, at least one.
      baseline: settings that exactly one configuration has; None: those of the first.

    Raises:
      UserError: there are no results, or the baseline does not match exactly one configuration.
    """
    if not results:
        raise UserError("the sweep has no runs: there is nothing to report")
    configurations = group(results)
    reference = find_baseline(configurations, baseline)
    differences = [
        []
        if each is reference
        else [
            loss - reference.losses[seed]
            for seed, loss in each.losses.items()
            if seed in reference.losses
        ]
        for each in configurations
    ]
    ps = [paired_p(each) for each in differences]
    corrected = iter(holm([p for p in ps if p is not None]))
    summaries = [
        Summary(
            configuration=each,
            loss=mean_interval(list(each.losses.values())),
            comparison=Comparison(interval, p, next(corrected) if p is not None else None)
            if (interval := mean_interval(difference))
            else None,
            is_baseline=each is reference,
        )
        for each, difference, p in zip(configurations, differences, ps, strict=True)
    ]
    return sorted(summaries, key=lambda each: each.loss.mean if each.loss else math.inf)
