"""Scaling laws: how the loss falls with the size of the model and the characters it has read.

  L(N, D) = E + A / N^alpha + B / D^beta

N is the number of parameters, D the number of characters read in training, L the validation loss in
nats/char. No model of the family gets below E.

Source: Hoffmann et al. 2022, "Training compute-optimal large language models" (arXiv:2203.15556),
section 3.3: the same form, fitted to log L with a Huber loss from many starting points.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import optimize

_HUBER = 1e-3  # residuals of log L above this count linearly
# Bounds of log E, log A, alpha, log B, beta
_BOUNDS = ([-5.0, -10.0, 1e-3, -10.0, 1e-3], [3.0, 40.0, 3.0, 40.0, 3.0])
_STARTS = list(itertools.product([-1.0, 0.3], [1.0, 6.0], [0.2, 0.6], [1.0, 6.0], [0.2, 0.6]))
_MIN_LEVELS = 3  # number of different N and of different D that a fit needs


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = irreducible + a / N^alpha + b / D^beta.

    Attributes:
      irreducible: E, nats/char.
      a: A, the factor of the term in N.
      alpha: exponent of N.
      b: B, the factor of the term in D.
      beta: exponent of D.
    """

    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, num_params: np.ndarray, num_chars: np.ndarray) -> np.ndarray:
        """Returns the losses in nats/char for N and D of any shape."""
        return (
            self.irreducible
            + self.a * np.asarray(num_params, float) ** -self.alpha
            + self.b * np.asarray(num_chars, float) ** -self.beta
        )


def can_fit(num_params: np.ndarray, num_chars: np.ndarray) -> bool:
    """Returns whether there are enough sizes and lengths, and more runs than fitted numbers."""
    levels = min(len(np.unique(num_params)), len(np.unique(num_chars)))
    return levels >= _MIN_LEVELS and len(num_params) > 5


def fit_scaling_law(
    num_params: np.ndarray,
    num_chars: np.ndarray,
    *,
    losses: np.ndarray,
    start: ScalingLaw | None = None,
) -> ScalingLaw:
    """Fits the law to runs.

    Args:
      num_params: [n], N of each run.
      num_chars: [n], D of each run.
      losses: [n], validation loss of each run, nats/char.
      start: law to start the fit from; None tries many starts and keeps the best fit.
    """
    n, d, log_losses = (np.log(np.asarray(x, float)) for x in (num_params, num_chars, losses))

    def log_terms(p: np.ndarray) -> np.ndarray:
        log_e, log_a, alpha, log_b, beta = p
        return np.stack([np.full_like(n, log_e), log_a - alpha * n, log_b - beta * d])

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(log_terms(p)) - log_losses

    def jacobian(p: np.ndarray) -> np.ndarray:
        terms = log_terms(p)
        e, a, b = np.exp(terms - np.logaddexp.reduce(terms))
        return np.stack([e, a, -n * a, b, -d * b], axis=1)

    starts = [_to_numbers(start)] if start else _STARTS
    fits = [
        optimize.least_squares(
            residuals, at, jacobian, bounds=_BOUNDS, loss="huber", f_scale=_HUBER, x_scale="jac"
        )
        for at in starts
    ]
    log_e, log_a, alpha, log_b, beta = min(fits, key=lambda fit: fit.cost).x
    return ScalingLaw(*map(float, (np.exp(log_e), np.exp(log_a), alpha, np.exp(log_b), beta)))


def _to_numbers(law: ScalingLaw) -> np.ndarray:
    logs = np.log([law.irreducible, law.a, law.b])
    numbers = np.array([logs[0], logs[1], law.alpha, logs[2], law.beta])
    return np.clip(numbers, np.add(_BOUNDS[0], 1e-6), np.subtract(_BOUNDS[1], 1e-6))


def bootstrap(
    num_params: np.ndarray,
    num_chars: np.ndarray,
    *,
    losses: np.ndarray,
    num_samples: int = 200,
    seed: int = 0,
) -> list[ScalingLaw]:
    """Fits the law to bootstrap samples of the runs, which shows how uncertain its numbers are.

    Samples with too few sizes or lengths for a fit are drawn again.
    """
    rng = np.random.default_rng(seed)
    start = fit_scaling_law(num_params, num_chars, losses=losses)
    laws: list[ScalingLaw] = []
    while len(laws) < num_samples:
        rows = rng.integers(len(losses), size=len(losses))
        n, d = num_params[rows], num_chars[rows]
        if can_fit(n, d):
            laws.append(fit_scaling_law(n, d, losses=losses[rows], start=start))
    return laws


def describe_scaling_law(
    num_params: np.ndarray, num_chars: np.ndarray, *, losses: np.ndarray
) -> str:
    """Returns a description of the fitted law, with 95% bootstrap intervals and its residual."""
    law = fit_scaling_law(num_params, num_chars, losses=losses)
    laws = bootstrap(num_params, num_chars, losses=losses)

    def interval(name: str) -> str:
        low, high = np.percentile([getattr(other, name) for other in laws], [2.5, 97.5])
        return f"{getattr(law, name):.3g} [{low:.3g}, {high:.3g}]"

    residual = np.sqrt(np.mean((law.loss(num_params, num_chars) - losses) ** 2))
    return (
        f"Scaling law L = E + A / N^alpha + B / D^beta, fitted to {len(losses)} runs "
        f"({min(num_params):,} to {max(num_params):,} parameters, {min(num_chars):,} to "
        f"{max(num_chars):,} characters read): E {interval('irreducible')} nats/char, "
        f"A {interval('a')}, alpha {interval('alpha')}, B {interval('b')}, beta "
        f"{interval('beta')} (95% intervals by bootstrap over runs); root mean square residual "
        f"{residual:.4f} nats/char. Outside these ranges the law is a guess."
    )
