"""Errors of losses and of their differences, in simulations where the truth is known."""

import math
import time

import numpy as np
import pytest
from helpers import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats

from charrnn_jax.evaluation.breakdown import break_down, most_different
from charrnn_jax.evaluation.comparison import (
    _resampled,
    block_length,
    block_means,
    paired_difference,
    standard_error,
)

NUM = 250  # simulations of a kind


def autoregressive(rng: np.random.Generator, num_chars: int, phi: float) -> np.ndarray:
    """Variance 1 and correlation phi^i at distance i."""
    noise = rng.standard_normal(num_chars + 5000)
    return signal.lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[5000:]


def differences(rng: np.random.Generator, num_chars: int, phi: float) -> np.ndarray:
    """Like those of two runs: heavy tails, and hard passages in which one of them is worse."""
    single = rng.standard_t(3, num_chars) / math.sqrt(3)
    return 0.5 * (single + 0.2 * autoregressive(rng, num_chars, phi))


@pytest.mark.parametrize("phi", [0.0, 0.99, slow(0.9), slow(0.999)])
def test_intervals_hold_the_true_difference_in_95_of_100_texts(phi: float) -> None:
    """Also if passages of a thousand characters are alike, where a plain interval fails."""
    rng, truth = np.random.default_rng(0), 0.01
    held = held_plainly = 0
    for seed in range(NUM):
        others = rng.gamma(1.0, 1.5, 30_000)
        losses = others + truth + differences(rng, 30_000, phi)
        found = paired_difference(losses, others, num_resamples=1000, seed=seed)
        held += found.low <= truth <= found.high
        error = 1.96 * np.std(losses - others) / math.sqrt(30_000)
        held_plainly += abs(found.mean - truth) <= error
    # Not fewer than chance allows (1 in 1000) if 94 of 100 are right.
    fewest = int(stats.binom.ppf(0.001, NUM, 0.94))
    assert held >= fewest, held / NUM
    assert held <= 0.99 * NUM  # nor wider than they need to be
    if phi != 0.9:  # at 0.9 a plain interval fails by little
        assert (held_plainly >= fewest) == (phi == 0)


def test_differences_as_large_as_detectable_are_found_in_about_4_of_5_texts() -> None:
    rng = np.random.default_rng(1)
    zeros, texts = np.zeros(30_000), [differences(rng, 30_000, 0.9) for _ in range(150)]
    found = [paired_difference(text, zeros, num_resamples=1000) for text in texts]
    truth = float(np.median([each.detectable for each in found]))
    found = [paired_difference(text + truth, zeros, num_resamples=1000) for text in texts]
    assert np.mean([each.p < 0.05 for each in found]) == pytest.approx(0.8, abs=0.1)


def test_blocks_grow_with_correlation_and_are_never_few() -> None:
    rng = np.random.default_rng(2)
    lengths = [
        np.median([block_length(autoregressive(rng, 200_000, phi)) for _ in range(15)])
        for phi in (0.0, 0.99, 0.999, 0.99999)
    ]
    assert lengths[0] == 256
    assert lengths == sorted(set(lengths))  # each longer than the one before
    assert lengths[-1] == 200_000 // 16
    for num_chars in (32, 100, 5000, 3_000_000):
        blocks = block_means(trend := np.arange(num_chars), block_length(trend))
        assert 16 <= len(blocks) <= 1024
    np.testing.assert_allclose(block_means(np.arange(10), 4), [1.5, 5.5])


@pytest.mark.parametrize("phi", [0.0, 0.99])
def test_standard_error_is_the_spread_of_the_mean_over_texts(phi: float) -> None:
    rng = np.random.default_rng(3)
    texts = [np.float32(1.5 + differences(rng, 30_000, phi)) for _ in range(200)]
    spread = np.std([text.mean(dtype=float) for text in texts])
    errors = [standard_error(text) for text in texts]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert math.isnan(standard_error(np.ones(31)))
    assert standard_error(np.ones(32)) == 0


def test_errors_allow_for_blocks_that_are_still_correlated() -> None:
    """In a text too short for longer ones, on average."""
    rng, zeros = np.random.default_rng(8), np.zeros(3000)
    texts = [differences(rng, 3000, 0.99) for _ in range(NUM)]
    spread = np.std([text.mean() for text in texts])
    found = [paired_difference(text, zeros, num_resamples=400) for text in texts]
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.15)
    assert np.mean([standard_error(text) for text in texts]) == pytest.approx(spread, rel=0.15)
    assert np.mean([each.correlation for each in found]) > 0.2


@given(st.integers(2, 50), st.integers(1, 50), st.integers(0, 99))
def test_resamples_are_blocks_of_the_text_closed_to_a_circle(
    n: int, length: int, seed: int
) -> None:
    length = min(length, n)
    series = np.random.default_rng(seed).normal(size=n)
    means = _resampled(series, length, num_resamples=5, seed=seed)
    rng = np.random.default_rng(seed)
    starts = rng.integers(n, size=(5, n // length))
    for mean, whole, last in zip(means, starts, rng.integers(n, size=5), strict=True):
        blocks = [np.arange(start, start + length) for start in whole]
        blocks.append(np.arange(last, last + n % length))
        drawn = np.concatenate(blocks)
        assert len(drawn) == n
        assert mean == pytest.approx(series[drawn % n].mean(), abs=1e-9)


@settings(max_examples=25)
@given(st.integers(32, 700), st.integers(0, 9))
def test_order_only_flips_the_sign_and_equal_models_differ_by_exactly_nothing(
    num_chars: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.gamma(1.0, 1.5, (2, num_chars)).astype(np.float32)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.mean, one.p) == (-other.mean, other.p)
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.high == pytest.approx(-other.low, abs=1e-12)
    assert one.standard_error == pytest.approx(other.standard_error)
    assert one.low < one.mean < one.high
    equal = paired_difference(a, a.copy())
    assert (equal.mean, equal.low, equal.high, equal.standard_error, equal.p) == (0, 0, 0, 0, 1)


def test_resamples_are_seeded_and_there_are_as_many_as_asked() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.gamma(1.0, 1.5, (2, 3000))
    assert paired_difference(a, b) == paired_difference(a, b)
    assert paired_difference(a, b).low != paired_difference(a, b, seed=1).low
    for num in (99, 999):  # no resample is beyond 0
        assert paired_difference(a + 9, b, num_resamples=num).p == 2 / (num + 1)
    start = time.perf_counter()
    paired_difference(*rng.gamma(1.0, 1.5, (2, 111_540)))
    assert time.perf_counter() - start < 5  # 0.1 s, on a machine that does nothing else


@pytest.mark.parametrize("shapes", [(31, 31), (40, 41)])
def test_texts_that_cannot_be_compared_are_refused(shapes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="give 32 or more"):
        paired_difference(np.zeros(shapes[0]), np.zeros(shapes[1]))
    with pytest.raises(ValueError, match="not finite"):
        paired_difference(np.full(99, np.inf), np.zeros(99))


# --- where it comes from ------------------------------------------------------------------------

TEXT = "I'm 42, née Ωmega!\nщит\t你好 + e\u0301\n\nA long line without an end, and so on and on"


@pytest.mark.parametrize("window", [0, 1, 8, 11])
def test_groups_of_every_kind_add_up_to_the_difference(window: int) -> None:
    rng = np.random.default_rng(5)
    text = TEXT * 4
    a, b = rng.gamma(1.0, 1.5, (2, len(text)))
    groups = break_down(a, b, text, window=window)
    kinds = {group.kind for group in groups}
    assert len(kinds) == 3 + bool(window)
    for kind in kinds:
        members = [group for group in groups if group.kind == kind]
        assert sum(group.num_chars for group in members) == len(text)
        assert sum(group.contribution for group in members) == pytest.approx(np.mean(a - b))
        assert sum(group.share or math.nan for group in members) == pytest.approx(1.0)
    assert {group.share for group in break_down(a, a, text)} == {None}


@pytest.mark.parametrize(
    ("group", "members"),
    [
        ("lower-case letter", "mnéemegaщитe" + "longlinewithoutanendandsoonandon"),
        ("upper-case letter", "IΩA"),
        ("other letter", "你好"),
        ("mark", "\u0301"),
        ("digit", "42"),
        ("space", "   \t  " + " " * 10),
        ("newline", "\n\n\n"),
        ("punctuation", "',!,"),
        ("symbol", "+"),
    ],
)
def test_every_character_has_the_kind_of_its_script(group: str, members: str) -> None:
    """A group of which model A alone has a loss at all contributes all of the difference."""
    losses = np.array([float(character in members) for character in TEXT])
    shares = {each.name: each.share for each in break_down(losses, 0 * losses, TEXT)}
    counts = {each.name: each.num_chars for each in break_down(losses, 0 * losses, TEXT)}
    assert shares[group] == 1
    assert counts[group] == len(members)


def test_positions_are_counted_in_words_lines_and_windows() -> None:
    text = "ab cdefg\n" * 20
    positions = {
        "position in the word": [1, 2, 0, 1, 2, 3, 3, 5, 0] * 20,
        "position in the line": [1, 2, 2, 2, 2, 2, 2, 2, 2] * 20,
        "position in the window": [1, 2, 3, 3, 5] * 36,
    }
    starts = {"outside": 0, "1": 1, "2": 2, "3 to 4": 3, "5 on": 5, "2 to 10": 2, "5 to 8": 5}
    losses = np.random.default_rng(6).gamma(1.0, 1.5, len(text))
    groups = break_down(losses, 0 * losses, text, window=5)
    for kind, expected in positions.items():
        named = {starts[group.name]: group for group in groups if group.kind == kind}
        assert sorted(named) == sorted(set(expected))
        for start, group in named.items():
            chosen = losses[np.array(expected) == start]
            assert group.losses == pytest.approx((chosen.mean(), 0))
            assert group.num_chars == len(chosen)


def test_the_error_of_a_group_is_the_spread_of_its_difference_over_texts() -> None:
    rng = np.random.default_rng(7)
    text = "ab, c\n" * 700
    found = [break_down(rng.gamma(1.0, 1.5, 4200), np.zeros(4200), text) for _ in range(150)]
    for index, group in enumerate(found[0]):
        spread = np.std([groups[index].losses[0] for groups in found])
        error = np.mean([groups[index].standard_error for groups in found])
        assert error == pytest.approx(spread, rel=0.2), group
    few, many = break_down(np.ones(93), np.zeros(93), "A" * 31 + "," * 62)[:2]
    assert (few.name, few.standard_error) == ("upper-case letter", None)
    assert (many.name, many.standard_error) == ("punctuation", 0)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 99))
def test_passages_are_the_largest_ones_without_overlaps(n: int, length: int, seed: int) -> None:
    losses = np.random.default_rng(seed).integers(-9, 10, n).astype(float)
    length = min(length, n)
    passages = most_different(losses, np.zeros(n), num=4, length=length)
    taken: set[int] = set()
    for passage in passages:
        sums = [
            abs(losses[start : start + length].sum())
            for start in range(n - length + 1)
            if not taken & set(range(start, start + length))
        ]
        assert abs(passage.nats) == max(sums)
        assert passage.nats == losses[passage.start : passage.end].sum()
        assert passage.end - passage.start == length
        taken |= set(range(passage.start, passage.end))
    free = [not taken & set(range(start, start + length)) for start in range(n - length + 1)]
    if len(passages) < 4:  # nothing that differs is left
        assert not any(
            losses[start : start + length].sum() for start, is_free in enumerate(free) if is_free
        )
