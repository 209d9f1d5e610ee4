"""Is a difference real? Standard errors, and the paired difference of two models on one text.

The characters of a text are not independent draws: a hard scene is hard for thousands of
characters. So all errors here come from the means of *blocks*, which are long enough that the means
of neighbours are hardly correlated; see `block_length`. The models are fixed and the text is the
sample: the errors say what other text of the same kind would have given. They say nothing about
other seeds. This module knows losses as arrays, but neither models nor texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from charrnn_jax.tables import table

NUM_RESAMPLES = 10_000
MIN_BLOCKS, MAX_BLOCKS = 16, 1024
MIN_LENGTH = 256  # characters, about six lines of verse
MAX_CORRELATION = 0.05  # of neighbours: the standard error is then about 5% too low
_MOST_CORRELATION = 0.8  # that is allowed for: 16 blocks cannot tell more
_DRAWS = 1 << 20  # blocks drawn at once, which bounds the memory


@dataclass(frozen=True)
class Difference:
    """The mean loss of model A minus that of model B on the same characters.

    Attributes:
      mean: mean difference in nats/char; below 0: A is better.
      low: lower end of the 95% interval.
      high: upper end.
      standard_error: standard error of the mean.
      p: two-sided p of the hypothesis that the mean is 0.
      block_length: number of characters in a block.
      correlation: correlation of the mean differences of neighbouring blocks; above 0.05 the text
        has few independent parts, and the interval was widened.
      num_chars: number of characters.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    p: float
    block_length: int
    correlation: float
    num_chars: int

    @property
    def detectable(self) -> float:
        """The smallest true difference, in nats/char, that about 4 of 5 such texts would show.

        half the interval + z(0.8) standard errors, about 2.8 standard errors

        Where the blocks are still correlated, errors are uncertain themselves, and fewer texts show
        it.
        """
        return (self.high - self.low) / 2 + float(ndtri(0.8)) * self.standard_error

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the difference."""
        facts = [
            ("difference in nats/char", f"{self.mean:+.4f}"),
            ("95% interval", f"{self.low:+.4f} to {self.high:+.4f}"),
            ("p", f"{self.p:.2g}"),
            ("characters", f"{self.num_chars:,}"),
        ]
        return table(facts)


def block_length(series: np.ndarray) -> int:
    """Returns the length of blocks whose means are hardly correlated, in characters.

    It starts with 256 characters, and is doubled while the means of neighbouring blocks have a
    correlation above 0.05. There are always 16 to 1024 blocks, so the blocks of a short text are
    shorter, and the longest ones may still be correlated; see `_widening`.

    Rules that read the length from the correlation of single characters, such as Politis & White
    2004, choose about 100 characters for the losses of Tiny Shakespeare, and give an eighth of this
    standard error: correlations at a distance of thousands are each tiny, but they add up.

    Args:
      series: [n] losses, or differences of losses, in the order of the text.

    Source: the doubling follows Law & Carson, "A sequential procedure for determining the length of
    a steady-state simulation", 1979.
    """
    num_chars = len(series)
    longest = max(num_chars // MIN_BLOCKS, 1)
    length = min(max(MIN_LENGTH, -(-num_chars // MAX_BLOCKS)), longest)
    while length < longest and _correlation(block_means(series, length)) > MAX_CORRELATION:
        length = min(2 * length, longest)
    return length


def block_means(series: np.ndarray, length: int) -> np.ndarray:
    """Returns the means of consecutive blocks, [n // length], without an incomplete last one."""
    num_blocks = len(series) // length
    blocks = series[: num_blocks * length].reshape(num_blocks, length)
    return blocks.mean(axis=1, dtype=np.float64)


def _correlation(means: np.ndarray) -> float:
    """Returns the correlation of neighbours; 0 if all means are equal."""
    centered = means - means.mean()
    if not (variance := float(centered @ centered)):
        return 0.0
    # The estimate from k blocks is too low by about 1 / k.
    return float(centered[1:] @ centered[:-1]) / variance + 1 / len(means)


def _widening(correlation: float) -> float:
    """Returns the factor by which correlated blocks make the standard error larger.

    sqrt((1 + r) / (1 - r)), exact for many blocks whose correlation at distance i is r^i

    It is 1 for blocks that are hardly correlated.
    """
    r = min(correlation, _MOST_CORRELATION)
    return math.sqrt((1 + r) / (1 - r)) if r > MAX_CORRELATION else 1.0


def standard_error(losses: np.ndarray) -> float:
    """Returns the standard error of the mean loss, in nats/char.

    s / sqrt(k), with the standard deviation s of the means of k blocks; more if the text is too
    short for blocks that are hardly correlated, see `_widening`

    It is what the choice of the text contributes: how far the mean loss on other text of the same
    kind and length would be from this one.

    Args:
      losses: [n] losses of single characters in nats, in the order of the text.

    Returns:
      The standard error; NaN for fewer than 32 characters.
    """
    if len(losses) < 2 * MIN_BLOCKS:
        return math.nan
    means = block_means(losses, block_length(losses))
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    return error * _widening(_correlation(means))


def paired_difference(
    losses: np.ndarray, others: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """Compares two models on the same text, by a circular block bootstrap of the differences.

    The differences d[i] = losses[i] - others[i] are resampled in blocks that start anywhere in the
    text, which is closed to a circle. The interval has the middle 95% of the means of the
    resamples. As it comes from k = n / length blocks only, it is widened by

      sqrt(k / (k - 1)) t(0.975, k - 1) / z(0.975)

    which is 1.004 for 400 blocks and 1.12 for 16, and for blocks that are still correlated by
    `_widening`. Exchanging the models changes only the signs.

    Args:
      losses: [n] losses of model A in nats, in the order of the text, n at least 32.
      others: [n] losses of model B for the same characters.
      num_resamples: number of resamples.
      seed: seed of the resamples.

    Raises:
      ValueError: the texts differ in length, are too short, or a loss is not finite.

    Source: Politis & Romano, "A circular block-resampling procedure for stationary data", 1992.
    """
    if losses.shape != others.shape or len(losses) < 2 * MIN_BLOCKS:
        raise ValueError(f"losses of shapes {losses.shape} and {others.shape}: give 32 or more")
    differences = np.subtract(losses, others, dtype=np.float64)
    mean, num_chars = float(differences.mean()), len(differences)
    if not math.isfinite(mean):
        raise ValueError("a loss is not finite")
    length = block_length(differences)
    num_blocks = num_chars / length
    correlation = _correlation(block_means(differences, length))
    deviations = _resampled(differences - mean, length, num_resamples=num_resamples, seed=seed)
    deviations *= math.sqrt(num_blocks / (num_blocks - 1)) * _widening(correlation)
    t_ratio = float(stdtrit(num_blocks - 1, 0.975) / ndtri(0.975))
    resampled = mean + t_ratio * deviations
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    # As many resamples are beyond 0 as an interval that ends there would leave out.
    fewest = min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
    return Difference(
        mean=mean,
        low=low,
        high=high,
        standard_error=float(deviations.std()),
        p=min(1.0, 2 * (1 + int(fewest)) / (1 + num_resamples)),
        block_length=length,
        correlation=correlation,
        num_chars=num_chars,
    )


def _resampled(series: np.ndarray, length: int, *, num_resamples: int, seed: int) -> np.ndarray:
    """Returns the means of resamples of n values: whole blocks, and a shorter last one."""
    n = len(series)
    totals = np.concatenate([[0.0], np.cumsum(np.concatenate([series, series[:length]]))])
    num_whole, rest = divmod(n, length)
    whole = totals[length : length + n] - totals[:n]  # the sum of the block that starts at each i
    last = totals[rest : rest + n] - totals[:n]
    rng = np.random.default_rng(seed)
    sums = np.empty(num_resamples)
    rows = max(_DRAWS // num_whole, 1)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        drawn = whole[rng.integers(n, size=(size, num_whole))].sum(axis=1)
        sums[start : start + size] = drawn + last[rng.integers(n, size=size)]
    return sums / n


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p values with Holm's correction, which limits the chance of any false positive.

    Sorted, corrected[i] = max over j <= i of min(1, (m - j) p[j]), j from 0.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected
