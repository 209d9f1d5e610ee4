"""Statistics of sweeps against definitions, independent implementations and simulations."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.comparison import holm
from charrnn_jax.reports.sweep.effects import Decomposition, decompose, is_geometric, value_text
from charrnn_jax.reports.sweep.statistics import (
    Result,
    Summary,
    group,
    mean_interval,
    paired_p,
    summarize,
    varying,
)


def make_result(loss: float | None = 1.5, status: str = "done", **settings: Any) -> Result:
    return Result("run", settings, status, loss, loss, (), 1000, 10.0)


def by_settings(summaries: Sequence[Summary], **settings: Any) -> Summary:
    (found,) = (each for each in summaries if each.configuration.settings == settings)
    return found


# --- means, tests -------------------------------------------------------------------------------


@given(st.integers(2, 20), st.integers(0, 2**31))
def test_intervals_and_p_values_are_those_of_scipy(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(1.5, 0.1, num), rng.normal(1.55, 0.1, num)
    interval = mean_interval(a.tolist())
    assert interval is not None
    expected = stats.t.interval(0.95, num - 1, loc=a.mean(), scale=stats.sem(a))
    np.testing.assert_allclose(interval[1:3], expected, rtol=1e-9)
    test = stats.ttest_rel(a, b)
    assert paired_p((a - b).tolist()) == pytest.approx(test.pvalue, rel=1e-8)
    difference = mean_interval((a - b).tolist())
    assert difference is not None
    np.testing.assert_allclose(difference[1:3], test.confidence_interval(0.95), rtol=1e-8)


@pytest.mark.parametrize("num", [2, 3, 5])
def test_95_percent_intervals_hold_the_truth_in_95_percent(num: int) -> None:
    samples = np.random.default_rng(num).normal(1.5, 0.02, (6000, num))
    intervals = [mean_interval(sample.tolist()) for sample in samples]
    hits = [i is not None and i.low is not None and i.low < 1.5 < i.high for i in intervals]
    assert abs(np.mean(hits) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 6000)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_bonferroni_on_every_subset(ps: list[float]) -> None:
    """The closed test: an hypothesis falls if every set of hypotheses that holds it falls."""
    sets = [s for n in range(len(ps)) for s in itertools.combinations(range(len(ps)), n + 1)]
    expected = [
        max(min(1.0, len(s) * min(ps[i] for i in s)) for s in sets if index in s)
        for index in range(len(ps))
    ]
    assert holm(ps) == pytest.approx(expected)


def test_what_has_no_spread_has_no_p() -> None:
    assert paired_p([]) is None
    assert paired_p([0.1]) is None
    assert paired_p([0.0, 0.0, 0.0]) is None
    losses = np.array([1.1, 1.2, 1.7])
    assert paired_p((losses + 0.1 - losses).tolist()) is None  # equal but for rounding
    assert mean_interval([]) is None
    assert mean_interval([1.5]) == (1.5, None, None, 1)
    assert mean_interval([1.5, 1.5]) == (1.5, 1.5, 1.5, 2)


# --- configurations -----------------------------------------------------------------------------


def test_runs_of_equal_settings_are_one_configuration() -> None:
    settings = [1, 1.0, True, "1", None, "None", (1, 2), [1, 2], {"a": [1]}, {"a": (1,)}, math.nan]
    results = [make_result(x=value, seed=i) for i, value in enumerate([*settings, float("nan")])]
    results.append(make_result(seed=0))
    groups = group(results)
    assert [len(each.runs) for each in groups] == [2, 1, 1, 1, 1, 2, 2, 2, 1]
    assert varying(groups) == ["x"]


def test_only_runs_that_are_done_with_a_number_count() -> None:
    results = [
        *(make_result(1.5 + 0.1 * seed, x=1, seed=seed) for seed in range(2)),
        make_result(9.0, "diverged", x=1, seed=2),
        make_result(1.0, "pruned", x=1, seed=3),
        make_result(1.0, "running", x=1, seed=4),
        make_result(math.nan, x=1, seed=5),
        make_result(None, x=1, seed=6),
        make_result(None, "failed", x=2, seed=0),
    ]
    one, two = summarize(results, None)
    assert one.loss is not None
    assert one.loss.mean == pytest.approx(1.55)
    assert (one.loss.num, len(one.configuration.runs)) == (2, 7)
    assert two.loss is None
    assert two.comparison is None


def test_comparisons_pair_the_seeds_that_both_have() -> None:
    rng = np.random.default_rng(0)
    losses = {(x, seed): rng.normal(1.5 + x / 50, 0.01) for x in range(4) for seed in range(5)}
    del losses[0, 1], losses[2, 3]
    results = [make_result(loss, x=x, seed=seed) for (x, seed), loss in losses.items()]
    rng.shuffle(results)
    summaries = summarize(results, {"x": 0})
    ps = []
    for x in (1, 2, 3):
        seeds = [s for s in range(5) if (0, s) in losses and (x, s) in losses]
        test = stats.ttest_rel([losses[x, s] for s in seeds], [losses[0, s] for s in seeds])
        comparison = by_settings(summaries, x=x).comparison
        assert comparison is not None
        assert comparison.p == pytest.approx(test.pvalue)
        differences = [losses[x, s] - losses[0, s] for s in seeds]
        assert comparison.difference.mean == pytest.approx(np.mean(differences))
        assert comparison.difference.num == len(seeds)
        ps.append(test.pvalue)
    corrected = [by_settings(summaries, x=x).comparison.corrected_p for x in (1, 2, 3)]
    assert corrected == pytest.approx(holm(ps))
    assert comparison._replace(p=0.06, corrected_p=0.04).is_significant
    assert not comparison._replace(p=0.04, corrected_p=0.06).is_significant
    assert by_settings(summaries, x=0).is_baseline
    means = [each.loss.mean for each in summaries if each.loss]
    assert means == sorted(means)


def test_a_seed_that_ran_twice_counts_once() -> None:
    results = [make_result(loss, x=1, seed=0) for loss in (1.4, 1.6)]
    (summary,) = summarize([*results, make_result(1.7, x=1, seed=1)], None)
    assert summary.loss is not None
    assert (summary.loss.mean, summary.loss.num) == (pytest.approx(1.6), 2)


def test_the_baseline_is_exactly_one_configuration() -> None:
    results = [make_result(a=a, b=b, seed=0) for a in (1, 2) for b in ("x", "y")]
    assert by_settings(summarize(results, None), a=1, b="x").is_baseline
    summaries = summarize(results, {"a": 2.0, "b": "y", "seed": 7})
    assert by_settings(summaries, a=2, b="y").is_baseline
    with pytest.raises(UserError, match=r"matches 2 .* \{'a': 1, 'b': 'x'\}; "):
        summarize(results, {"a": 1})
    with pytest.raises(UserError, match="matches 0"):
        summarize(results, {"a": 1, "c": 3})
    with pytest.raises(UserError, match="no runs"):
        summarize([], None)


# --- effects ------------------------------------------------------------------------------------


def grid(
    num_seeds: int, *, noise: float = 0.02, seed: int = 0, interaction: float = 0.0
) -> list[Result]:
    """Additive but for the interaction: 3 x 4 configurations."""
    rng = np.random.default_rng(seed)
    return [
        make_result(
            1.5 + 0.1 * a + 0.05 * b + interaction * a * b + noise * rng.normal(), a=a, b=b, seed=s
        )
        for a in range(3)
        for b in range(4)
        for s in range(num_seeds)
    ]


def sum_of_squares(losses: np.ndarray, *factors: np.ndarray) -> float:
    """Residual of one column a level of every factor."""
    columns = [np.ones(len(losses))]
    columns += [(factor == level).astype(float) for factor in factors for level in set(factor)]
    design = np.stack(columns, axis=1)
    coefficients = np.linalg.lstsq(design, losses, rcond=None)[0]
    return float(np.sum((losses - design @ coefficients) ** 2))


def shares(parts: Decomposition) -> list[float]:
    found = [each.share for each in parts.effects] + [parts.shared, parts.remainder, parts.seeds]
    return [share for share in found if share is not None]


@pytest.mark.parametrize("drop", [0, 9])
def test_shares_are_those_of_least_squares(drop: int) -> None:
    results = grid(3, interaction=0.03)[drop:]
    losses = np.array([each.loss for each in results])
    a, b = (np.array([each.settings[name] for each in results]) for name in "ab")
    total, full = sum_of_squares(losses), sum_of_squares(losses, a, b)
    seeds = sum_of_squares(losses, 10 * a + b)
    parts = decompose(group(results))
    expected = [
        (sum_of_squares(losses, b) - full) / total,
        (sum_of_squares(losses, a) - full) / total,
    ]
    assert [each.share for each in parts.effects] == pytest.approx(expected)
    assert [parts.remainder, parts.seeds] == pytest.approx([(full - seeds) / total, seeds / total])
    assert sum(shares(parts)) == pytest.approx(1)
    assert (parts.shared == 0) == (drop == 0)


def test_means_of_levels_are_plain_averages_in_a_full_grid_and_adjusted_in_another() -> None:
    results = grid(2)
    for effect in decompose(group(results)).effects:
        for level, value in zip(effect.levels, range(4), strict=False):
            losses = [each.loss for each in results if each.settings[effect.name] == value]
            assert level.loss is not None
            assert level.loss.mean == pytest.approx(np.mean(losses))
            assert (level.num_done, level.num_runs) == (len(losses), len(losses))
    exact = [
        each for each in grid(1, noise=0) if not (each.settings["a"] == 0 == each.settings["b"])
    ]
    first, second = (level.loss.mean for level in decompose(group(exact)).effects[0].levels[:2])
    assert second - first == pytest.approx(0.1)  # although the average of the first lacks its best


@pytest.mark.parametrize(("names", "num_seeds"), [("a", 3), ("ab", 1), ("ab", 3)])
def test_intervals_of_levels_hold_the_truth_in_95_percent(names: str, num_seeds: int) -> None:
    hits = []
    for seed in range(400):
        results = grid(num_seeds, seed=seed)
        if names == "a":
            results = [each for each in results if each.settings["b"] == 0]
        middle = 0.075 if names == "ab" else 0.0
        for value, level in enumerate(decompose(group(results)).effects[0].levels):
            assert level.loss is not None
            assert level.loss.low is not None
            assert level.loss.high is not None
            hits.append(level.loss.low < 1.5 + 0.1 * value + middle < level.loss.high)
    assert abs(np.mean(hits) - 0.95) < 0.02


def test_settings_that_vary_together_are_one_effect() -> None:
    rng = np.random.default_rng(0)
    pairs = [("gru", 100), ("lstm", 80), ("rnn", 200)]
    results = [
        make_result(1.5 + rng.normal() / 50, cell=cell, size=size, family=cell == "rnn", rate=rate)
        for cell, size in pairs
        for rate in (0.1, 0.2)
    ]
    joined, rate = decompose(group(results)).effects
    assert joined.name == "cell, size"
    assert [level.text for level in joined.levels] == ["gru, 100", "lstm, 80", "rnn, 200"]
    assert "cannot be told apart" in joined.note
    assert "determines family" in joined.note
    assert (rate.name, rate.note) == ("rate", "")


def test_what_the_sweep_cannot_tell_is_said() -> None:
    """One setting at a time, each from where the other is left as it is."""
    results = [make_result(1.5 + x / 10, a=x) for x in range(3)]
    results += [make_result(1.4 + x / 10, b=x) for x in range(3)]
    for effect in decompose(group(results)).effects:
        assert "2 of its 3 degrees of freedom" in effect.note
        assert all(level.loss is None for level in effect.levels)


def test_a_value_whose_runs_all_broke_off_has_no_mean() -> None:
    results = [make_result(1.5 + a / 9 + b / 5, a=a, b=b) for a in (1, 2) for b in (1, 2)]
    results += [make_result(None, "diverged", a=a, b=3) for a in (1, 2)]
    results += [make_result(None, "failed", a=a, b=b, c=0) for a in (1, 2) for b in (1, 2)]
    a, b, c = decompose(group(results)).effects
    assert [level.loss is None for level in a.levels + b.levels] == [False] * 4 + [True]
    assert (b.levels[2].num_done, b.levels[2].num_runs) == (0, 2)
    assert (c.share, c.note) == (None, "Only one value has a run that is done.")


def test_numbers_of_a_random_search_are_cut_into_quarters() -> None:
    rng = np.random.default_rng(0)
    results = [
        make_result(1.5 + rate + size / 100, rate=rate, size=int(size))
        for rate, size in zip(rng.uniform(size=40), rng.integers(0, 4, 40), strict=True)
    ]
    rate, size = decompose(group(results)).effects
    assert [level.num_done for level in rate.levels] == [10] * 4
    assert "quarters" in rate.note
    assert [level.text for level in size.levels] == ["0", "1", "2", "3"]
    assert rate.share is not None
    assert rate.share > 0.85


def test_equal_losses_have_no_shares() -> None:
    results = [make_result(1.5, a=a, b=b, seed=s) for a in (1, 2) for b in (1, 2) for s in (1, 2)]
    parts = decompose(group(results))
    assert shares(parts) == []
    assert [level.loss for level in parts.effects[0].levels] == [
        pytest.approx((1.5, 1.5, 1.5, 4))
    ] * 2


def test_values_are_shown_as_what_they_are() -> None:
    values = [1, 1.0, 0.1 + 0.2, 3e-4, "gru", "1", "", "None", None, True, [1, 2], np.float64(0.5)]
    expected = ["1", "1.0", "0.3", "0.0003", "gru", "'1'", "''", "'None'", "None", "True"]
    assert [value_text(value) for value in values] == [*expected, "[1, 2]", "0.5"]


def test_a_geometric_scale_is_recognized() -> None:
    assert is_geometric([1e-4, 3e-4, 1e-3, 3e-3])
    assert is_geometric([64, 128, 256])
    assert not is_geometric([1, 2, 3, 4])
    assert not is_geometric([0, 1, 10])
    assert not is_geometric([1, 10])
