"""The effect of each setting of a sweep on the loss.

The model is additive, with a column of 0 and 1 for every level of a factor except the first:

  loss[run] = constant + sum over factors of effect[level of the run's configuration] + error

It is fitted by least squares to the runs that are done. The variance of their losses is split into

  share[factor] = (RSS without the factor - RSS of the model) / total SS   (eta squared, type II)
  seeds         = SS of the runs around the mean of their configuration / total SS
  remainder     = (RSS of the model - SS of the seeds) / total SS          (interactions)
  shared        = 1 - all of these: explained equally well by several factors; 0 in a balanced grid

The mean of a level is the model's prediction at that level, averaged over the configurations with
their other factors as they are; in a balanced grid it is the plain average. Its error is estimated
from the remainder or, if that has no degrees of freedom, as with a single factor, from the spread
over seeds.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from charrnn_jax.reports.sweep.statistics import (
    MISSING,
    Configuration,
    Interval,
    setting_key,
    varying,
)

_MAX_LEVELS = 6  # a numeric setting with more, as in a random search, is cut into quarters
_ROUNDING = 1e-20  # sum of squares, nats^2, below which losses count as equal


class Level(NamedTuple):
    """A value of a factor, or a range of values.

    Attributes:
      text: the value or the range, as shown in tables.
      num_done: number of runs that are done.
      num_runs: number of all runs.
      loss: mean loss of the model, nats/char; None if the sweep does not determine it.
    """

    text: str
    num_done: int
    num_runs: int
    loss: Interval | None


class Effect(NamedTuple):
    """The effect of a factor: a setting, or several that always vary together.

    Attributes:
      name: names of the settings.
      levels: levels of the factor; numbers by size, others in the order of their appearance.
      share: share of the variance of the losses, 0 to 1; None if the sweep does not determine it.
      note: which effects cannot be told apart, and how values were grouped; may be empty.
    """

    name: str
    levels: tuple[Level, ...]
    share: float | None
    note: str


class Decomposition(NamedTuple):
    """Shares of the variance, which add up to 1; None if all losses are equal or too few."""

    effects: tuple[Effect, ...]
    shared: float | None
    remainder: float | None
    seeds: float | None
    error: str  # what the intervals are estimated from


class _Factor(NamedTuple):
    name: str
    codes: np.ndarray  # [C], level of each configuration
    texts: list[str]  # one for each level
    note: str


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def value_text(value: Any) -> str:
    """Returns a short text of a value; a string that could be another value gets quotes."""
    if isinstance(value, str):
        plain = value[:1].isalpha() and value not in ("None", "True", "False", "nan", "inf")
        return value if plain else repr(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        text = repr(float(value))
        return text if len(text) <= 8 else f"{float(value):.4g}"
    return str(value)


def setting_text(configuration: Configuration, name: str) -> str:
    settings = configuration.settings
    return value_text(settings[name]) if name in settings else MISSING


def changes_text(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns those of the settings that are among `names`, or "none"."""
    texts = [f"{name} = {value_text(settings[name])}" for name in settings if name in names]
    return ", ".join(texts) or "none"


def levels_of(configurations: Sequence[Configuration], name: str) -> dict[Hashable, Any]:
    """Returns the levels of a setting, key -> value: numbers by size, others as they appear."""
    levels: dict[Hashable, Any] = {
        setting_key(each.settings, name): each.settings.get(name) for each in configurations
    }
    if is_numeric(configurations, name):
        levels = dict(sorted(levels.items(), key=lambda item: float(item[1])))
    return levels


def is_numeric(configurations: Sequence[Configuration], name: str) -> bool:
    return all(is_number(each.settings.get(name)) for each in configurations)


def is_geometric(values: Sequence[float]) -> bool:
    """Returns whether sorted numbers are more evenly spaced on a logarithmic axis."""
    if len(values) < 3 or min(values) <= 0:
        return False
    linear, ratios = np.diff(values), np.diff(np.log(np.asarray(values, float)))
    return bool(ratios.std() / ratios.mean() < linear.std() / linear.mean())


def decompose(configurations: Sequence[Configuration]) -> Decomposition:
    """Splits the variance of the losses by the settings that vary.

    Args:
      configurations: configurations of the sweep, at least one of them with a run that is done. The
        ones without such a run only count among the runs of a level.
    """
    names = varying(configurations)
    factors = _separable([_factor(configurations, name, cut=len(names) > 1) for name in names])
    alive = [number for number, each in enumerate(configurations) if each.losses]
    groups = [np.array(list(configurations[number].losses.values())) for number in alive]
    losses, index = np.concatenate(groups), np.repeat(np.arange(len(alive)), list(map(len, groups)))
    codes = [factor.codes[alive] for factor in factors]
    model = _fit(_design(codes, len(alive)), index, losses)
    total = float(np.sum((losses - losses.mean()) ** 2))
    within = float(sum(np.sum((group - group.mean()) ** 2) for group in groups))

    remainder_freedom, seed_freedom = len(alive) - model.rank, len(losses) - len(alive)
    if remainder_freedom:
        freedom, variance = remainder_freedom, (model.rss - within) / remainder_freedom
        error = f"the remainder between configurations, {freedom} degrees of freedom"
    elif seed_freedom:
        freedom, variance = seed_freedom, within / seed_freedom
        error = f"the spread over seeds, {freedom} degrees of freedom"
    else:
        freedom, variance, error = 0, 0.0, "none, since there are too few runs"

    effects, explained = [], []
    for number, factor in enumerate(factors):
        rest = _fit(_design(codes[:number] + codes[number + 1 :], len(alive)), index, losses)
        separable, possible = model.rank - rest.rank, len(np.unique(codes[number])) - 1
        explained.append(max(0.0, rest.rss - model.rss))
        means = {}
        if separable == possible:
            for level in np.unique(codes[number]).tolist():
                at = _design(codes, len(alive), fixed=(number, level)).mean(axis=0)
                means[level] = _mean_at(at, model, variance=variance, freedom=freedom)
        note = factor.note
        if not possible:
            note += "Only one value has a run that is done. "
        elif separable < possible:
            note += (
                f"Only {separable} of its {possible} degrees of freedom can be told apart from the "
                "other settings, so the means at its values would be arbitrary. "
            )
        levels = _levels(factor, configurations, means)
        share = explained[-1] / total if separable and total > _ROUNDING else None
        effects.append(Effect(factor.name, levels, share, note.strip()))

    if total <= _ROUNDING:
        return Decomposition(tuple(effects), None, None, None, error)
    remainder = max(0.0, model.rss - within)
    shared = (total - sum(explained) - remainder - within) / total
    return Decomposition(
        tuple(effects),
        shared if abs(shared) > 1e-9 else 0.0,
        remainder / total,
        within / total if seed_freedom else None,
        error,
    )


def _levels(
    factor: _Factor, configurations: Sequence[Configuration], means: Mapping[int, Interval | None]
) -> tuple[Level, ...]:
    levels = []
    for code, text in enumerate(factor.texts):
        members = [
            each for each, at in zip(configurations, factor.codes, strict=True) if at == code
        ]
        num_done = sum(len(each.done) for each in members)
        num_runs = sum(len(each.runs) for each in members)
        levels.append(Level(text, num_done, num_runs, means.get(code)))
    return tuple(levels)


class _Fit(NamedTuple):
    coefficients: np.ndarray  # [P]
    inverse: np.ndarray  # [P, P], pseudo-inverse of X^T X
    projector: np.ndarray  # [P, P], onto the effects that the runs determine
    rank: int
    rss: float


def _fit(design: np.ndarray, index: np.ndarray, losses: np.ndarray) -> _Fit:
    """Fits by least squares: design [C, P], losses [N], index [N] of their configurations."""
    rows = design[index]
    inverse = np.linalg.pinv(rows.T @ rows, hermitian=True, rcond=1e-10)
    coefficients = inverse @ (rows.T @ losses)
    rank = int(np.linalg.matrix_rank(design))
    rss = float(np.sum((losses - rows @ coefficients) ** 2))
    return _Fit(coefficients, inverse, inverse @ (rows.T @ rows), rank, rss)


def _design(
    codes: Sequence[np.ndarray], num: int, fixed: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the design [C, P]; `fixed`: (factor, level) that all configurations get."""
    columns = [np.ones((num, 1))]
    for number, each in enumerate(codes):
        used = np.unique(each)
        if fixed is not None and fixed[0] == number:
            each = np.full(num, fixed[1])
        columns.append((each[:, None] == used[None, 1:]).astype(float))
    return np.concatenate(columns, axis=1)


def _mean_at(at: np.ndarray, model: _Fit, *, variance: float, freedom: int) -> Interval | None:
    """Returns the model's mean at a point [P]; None if the runs do not determine it."""
    if not np.allclose(at @ model.projector, at, atol=1e-6):
        return None
    mean, num = float(at @ model.coefficients), model.rank + freedom
    if not freedom:
        return Interval(mean, None, None, num)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(max(0.0, variance * at @ model.inverse @ at))
    return Interval(mean, mean - half, mean + half, num)


def _factor(configurations: Sequence[Configuration], name: str, *, cut: bool) -> _Factor:
    """Returns the factor of a setting; with `cut`, numbers that rarely repeat become quarters."""
    levels = levels_of(configurations, name)
    many = len(levels) > max(_MAX_LEVELS, len(configurations) / 2)
    if cut and many and is_numeric(configurations, name):
        values = np.array([float(each.settings[name]) for each in configurations])
        edges = np.quantile(values, [0.25, 0.5, 0.75])
        _, codes = np.unique(np.searchsorted(edges, values), return_inverse=True)
        ranges = [values[codes == code] for code in range(codes.max() + 1)]
        texts = [f"{value_text(each.min())} to {value_text(each.max())}" for each in ranges]
        return _Factor(name, codes, texts, "Grouped into quarters of the configurations. ")
    order = {key: number for number, key in enumerate(levels)}
    codes = np.array([order[setting_key(each.settings, name)] for each in configurations])
    texts = [MISSING] * len(levels)
    for code, each in zip(codes, configurations, strict=True):
        texts[code] = setting_text(each, name)
    return _Factor(name, codes, texts, "")


def _separable(factors: list[_Factor]) -> list[_Factor]:
    """Joins factors that always vary together, and drops factors that another one determines."""
    joined: list[_Factor] = []
    for factor in factors:
        for number, other in enumerate(joined):
            if _determines(factor, other) and _determines(other, factor):
                pairs = dict(zip(other.codes.tolist(), factor.codes.tolist(), strict=True))
                texts = [f"{text}, {factor.texts[pairs[i]]}" for i, text in enumerate(other.texts)]
                note = "They always vary together, so their effects cannot be told apart. "
                name = f"{other.name}, {factor.name}"
                joined[number] = other._replace(name=name, texts=texts, note=note)
                break
        else:
            joined.append(factor)
    kept = []
    for factor in joined:
        finer = [each.name for each in joined if each is not factor and _determines(each, factor)]
        if not finer:
            coarser = [
                each.name for each in joined if each is not factor and _determines(factor, each)
            ]
            inside = f"It determines {'; '.join(coarser)}, whose effect is included here. "
            kept.append(factor._replace(note=factor.note + inside) if coarser else factor)
    return kept


def _determines(factor: _Factor, other: _Factor) -> bool:
    """Returns whether the level of `factor` always determines the level of `other`."""
    pairs = set(zip(factor.codes.tolist(), other.codes.tolist(), strict=True))
    return len(pairs) == len(set(factor.codes.tolist()))
