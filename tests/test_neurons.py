"""The neuron atlas: probes, how units are scored, the command, and its page in a real browser."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.association import aucs, entropy, information, shifted_aucs
from charrnn_jax.evaluation.probes import PROBES, apply_probes, make_probe
from charrnn_jax.evaluation.units import best_units, score_units

# --- probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "text", "expected"),
    [
        ("inside quotes", 'a "b c" d', "001111100"),
        ("inside quotes", 'a "b\nc" d', "001111100"),
        ("inside quotes", 'a "b\n\nc" d', "0000000000"),  # not closed in its paragraph
        ("inside quotes", "say 'it's so' now", "00001111111110000"),
        ("inside quotes", "the lords' don't", "0000000000000000"),
        ("inside quotes", "a \u201cb\u201d c", "0011100"),
        ("inside brackets", "a (b [c]) d)", "001111110000"),
        ("inside brackets", "f(\n\nb", "01100"),
        ("upper-case word", "A KING I am McX", "001111000000000"),
        ("speaker line", "\nFirst Man:\nI say: no\n", "0111111111100000000000"),
        ("speaker line", "KING:", "00000"),  # no line break after it
        ("distance since newline", "ab\nc\n\nd", "1201001"),
        ("position in line", "\na\n\n", "0100"),
        ("position in word", "it's a-b", "12340101"),
        ("syllable", "queen, any", "0111100112"),
    ],
)
def test_a_probe_is_what_it_says(probe: str, text: str, expected: str) -> None:
    values = apply_probes(text, PROBES)[probe]
    assert "".join(str(int(value)) for value in values) == expected


def test_own_probes_are_checked() -> None:
    found = apply_probes("ab\nab", {"a": make_probe("^a"), "b": lambda text: np.arange(5)})
    np.testing.assert_array_equal(found["a"], [True, False, False, True, False])
    np.testing.assert_array_equal(found["b"], np.arange(5))
    with pytest.raises(UserError, match="not a regular expression"):
        make_probe("(")
    for wrong in (np.zeros(4), np.full(5, np.nan), np.array(["a"] * 5), np.zeros((5, 1))):
        with pytest.raises(UserError, match="the probe 'x' gave"):
            apply_probes("ab\nab", {"x": lambda text, wrong=wrong: wrong})


# --- scores -------------------------------------------------------------------------------------


def slow_auc(values: np.ndarray, truth: np.ndarray) -> float:
    """All pairs, one by one."""
    pairs = [(x, y) for x in values[truth] for y in values[~truth]]
    return float(np.mean([(x > y) + 0.5 * (x == y) for x, y in pairs]))


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(2, 40))
def test_auc_is_that_of_all_pairs_with_ties_and_for_every_shift(
    seed: int, num_levels: int, num: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, num_levels, num).astype(np.float32)
    truth = rng.permutation(np.arange(num) < rng.integers(1, num))
    expected = [slow_auc(values, np.roll(truth, shift)) for shift in range(num)]
    np.testing.assert_allclose(aucs(values[:, None], truth[:, None]), [[expected[0]]], rtol=1e-12)
    np.testing.assert_allclose(shifted_aucs(values, truth), expected, rtol=1e-12)


def test_mutual_information_is_that_of_the_counts() -> None:
    rng = np.random.default_rng(0)
    values, truth = rng.permutation(800) // 100, rng.random(800) < 0.3
    counts = [[np.mean((values == k) & (truth == b)) for b in (False, True)] for k in range(8)]
    p = np.array(counts)
    expected = sum(
        p[k, b] * np.log2(p[k, b] / (p[k].sum() * p[:, b].sum())) for k in range(8) for b in (0, 1)
    )
    assert information(values * 7.0, truth) == pytest.approx(expected)
    assert information(truth, truth) == pytest.approx(entropy(truth))
    assert entropy(values) == pytest.approx(3)


def series(rng: np.random.Generator, num: int) -> np.ndarray:
    """Numbers that change slowly, as units do."""
    return np.convolve(rng.normal(size=num + 99), np.ones(100) / 10, mode="valid")


def test_unrelated_series_that_change_slowly_are_rarely_significant() -> None:
    """About 5% of them at 5%; characters exchanged one by one would find most of them so."""
    rng = np.random.default_rng(0)
    ps, naive = [], []
    for _ in range(200):
        values, truth = series(rng, 1000), series(rng, 1000) > 0
        reached = shifted_aucs(values, truth)
        ps.append(np.mean(reached >= reached[0]))
        standard_error = np.sqrt(1001 / (12 * truth.sum() * (~truth).sum()))
        naive.append(reached[0] - 0.5 > 1.645 * standard_error)
    assert 0.02 < np.mean(np.less_equal(ps, 0.05)) < 0.09
    assert np.mean(naive) > 0.3


def test_units_are_found_on_one_half_and_scored_on_the_other() -> None:
    """A unit that follows a probe on the first half alone is chosen, and does not score."""
    rng = np.random.default_rng(1)
    num = 4000
    clear, spread, absent, early = (series(rng, num) > 0 for _ in range(4))
    outputs = rng.normal(size=(num, 2, 12)).astype(np.float32)
    outputs[:, 1, 3] -= 6 * clear  # low where it is true
    outputs[:, 0, :] += 0.8 * spread[:, None]  # a little in each of twelve units
    outputs[: num // 2, 0, 5] += 9 * early[: num // 2]
    position = np.concatenate([np.arange(length) for length in rng.integers(20, 60, num)])[:num]
    outputs[:, 1, 7] += position
    probes = {"clear": clear, "spread": spread, "absent": absent, "early": early}
    rare = np.arange(num) == 7
    found = score_units(outputs, probes | {"number": position, "rare": rare}, num_best=2)
    by_name = {probe.name: probe for probe in found}
    assert [probe.verdict for probe in found] == [
        "one unit", "many units", "nothing", "nothing", "one unit", "too rare"
    ]  # fmt: skip
    unit = by_name["clear"].units[0]
    assert (unit.layer, unit.unit, unit.sign) == (1, 3, -1)
    expected = slow_auc(-outputs[num // 2 :, 1, 3], clear[num // 2 :])
    assert unit.auc == pytest.approx(expected)
    assert unit.corrected_p == pytest.approx(10 * unit.p)  # the smallest of 5 x 2
    assert by_name["early"].units[0].unit == 5
    assert by_name["early"].units[0].chosen_auc > 0.99
    assert by_name["early"].units[0].auc < 0.6
    assert by_name["number"].criterion == np.median(position[: num // 2])
    assert [(u.probe, u.layer, u.unit) for u in best_units(found, num=3)] == [
        ("early", 0, 5), ("clear", 1, 3), ("number", 1, 7)
    ]  # fmt: skip
