"""How closely a number follows a property of the characters of a text.

  AUC                 the probability that the number is higher at a character that has the property
                      than at one that has not, with ties as one half
  mutual information  of the number, in 8 bins of equal size, and the property
  linear probe        a weighted sum of many numbers, fitted by ridge regression

This module knows arrays, but neither models nor texts.
"""

import numpy as np
from scipy.stats import rankdata

NUM_BINS = 8
_PENALTIES = tuple(10.0**k for k in range(-5, 1))  # of the ridge regression, per character


def aucs(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the AUC of each column of numbers for each property, [K, P].

    (sum of the ranks where it is true - n (n + 1) / 2) / (n m), for n true and m false values

    Args:
      values: [N, K] numbers.
      truth: [N, P] bools, each property true and false somewhere.
    """
    num_true = np.count_nonzero(truth, axis=0)
    sums = rankdata(values, axis=0).T @ truth.astype(np.float64)
    return _auc_of_rank_sum(sums, num_true[None], len(truth))


def shifted_aucs(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the AUC for the property shifted by 0, 1, ..., N - 1 characters, in a circle.

    They are the null distribution of the AUC at 0: a shift keeps how numbers and property go on
    from one character to the next, and the rhythm of lines and words, and only undoes that they
    belong together. Characters that are exchanged one by one would lose both, and any two series
    that change slowly would seem related. The share of shifts that reach the AUC at 0 is its p.

    All of them come from one circular correlation of the ranks with the property, by FFT.

    Args:
      values: [N] numbers.
      truth: [N] bools.
    """
    spectrum = np.fft.rfft(rankdata(values)) * np.conj(np.fft.rfft(truth.astype(np.float64)))
    # Ranks are multiples of a half, so rounding leaves the exact sums, also among ties.
    sums = np.round(2 * np.fft.irfft(spectrum, len(values))) / 2
    return _auc_of_rank_sum(sums, int(truth.sum()), len(truth))


def _auc_of_rank_sum(sums: np.ndarray, num_true: np.ndarray | int, num: int) -> np.ndarray:
    return (sums - num_true * (num_true + 1) / 2) / (num_true * (num - num_true))


def entropy(values: np.ndarray) -> float:
    """Returns the entropy of values as `information` bins them, in bits."""
    return information(values, values)


def information(values: np.ndarray, others: np.ndarray) -> float:
    """Returns the mutual information of two series of N values, in bits.

    Numbers are sorted into 8 bins of equal size, and equal ones share a bin; bools are as they are.
    Chance alone gives about (a - 1) (b - 1) / (2 N ln 2) for a and b bins in use: 0.0035 for 10,000
    characters and 8 bins.
    """
    joint = np.zeros((NUM_BINS, NUM_BINS))
    np.add.at(joint, (_bins(values), _bins(others)), 1 / len(values))
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    used = joint > 0
    return float((joint[used] * np.log2(joint[used] / independent[used])).sum())


def _bins(values: np.ndarray) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.intp)
    return (NUM_BINS * (rankdata(values) - 0.5) / len(values)).astype(np.intp)


def fit_linear_probes(values: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits the sums of numbers that follow each property best.

    They minimise the mean of (x w - y)^2 + penalty |w|^2 for standardised numbers x, and y = 1
    where the property is true and 0 where not, both less their means. The penalty of each property
    is the one of six whose weights, fitted on the first four fifths of the text, have the highest
    AUC on the last fifth.

    Args:
      values: [N, K] numbers.
      truth: [N, P] bools; all true and false somewhere in the last fifth, too, or the penalty is
        the smallest one.

    Returns:
      (weights [K, P]; the AUC [P] that each penalty was chosen for, on the last fifth: 0.5 if there
      was no choice).
    """
    split = len(values) * 4 // 5
    tried = _ridge(values[:split], truth[:split])  # [penalties, K, P]
    last, is_true = values[split:], truth[split:]
    best, highest = np.zeros(truth.shape[1], np.intp), np.full(truth.shape[1], 0.5)
    for column in np.flatnonzero(is_true.any(axis=0) & ~is_true.all(axis=0)):
        reached = aucs(last @ tried[:, :, column].T, is_true[:, [column]])[:, 0]
        best[column], highest[column] = reached.argmax(), reached.max()
    weights: np.ndarray = _ridge(values, truth)[best, :, np.arange(truth.shape[1])].T
    return weights, highest


def _ridge(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the weights for each penalty, of the numbers as they are."""
    x = values - values.mean(axis=0, dtype=np.float64)
    scale = np.maximum(x.std(axis=0), 1e-6)  # a unit may be constant
    x /= scale
    y = truth - truth.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh(x.T @ x / len(x))
    projected = vectors.T @ (x.T @ y / len(x))
    return np.stack(
        [
            vectors @ (projected / (np.maximum(eigenvalues, 0) + penalty)[:, None]) / scale[:, None]
            for penalty in _PENALTIES
        ]
    )
