import numpy as np
import pytest

from charrnn_jax.reports.sweep.scaling import (
    ScalingLaw,
    bootstrap,
    can_fit,
    describe_scaling_law,
    fit_scaling_law,
)

LAW = ScalingLaw(irreducible=1.1, a=30.0, alpha=0.4, b=200.0, beta=0.42)
N, D = (grid.ravel() for grid in np.meshgrid([1e4, 4e4, 2e5, 8e5], [2e5, 5e5, 1e6, 4e6]))


def test_terms_of_a_law_have_their_own_exponents() -> None:
    law = ScalingLaw(irreducible=1.0, a=2.0, alpha=0.5, b=3.0, beta=0.25)
    np.testing.assert_allclose(law.loss(np.array(4), np.array(16)), 1 + 2 / 2 + 3 / 2)


def test_fit_finds_the_law_that_made_the_losses() -> None:
    law = fit_scaling_law(N, D, losses=LAW.loss(N, D))
    np.testing.assert_allclose(law.loss(N, D), LAW.loss(N, D), rtol=1e-4)
    assert law.irreducible == pytest.approx(LAW.irreducible, rel=0.02)
    assert law.alpha == pytest.approx(LAW.alpha, rel=0.05)
    assert law.beta == pytest.approx(LAW.beta, rel=0.05)


def test_one_diverged_run_does_not_bend_the_fit() -> None:
    losses = LAW.loss(N, D)
    losses[5] *= 1.5
    law = fit_scaling_law(N, D, losses=losses)
    np.testing.assert_allclose(law.loss(N, D), LAW.loss(N, D), rtol=5e-3)


def test_bootstrap_covers_the_truth() -> None:
    noise = 1 + 0.003 * np.random.default_rng(1).normal(size=len(N))
    laws = bootstrap(N, D, losses=LAW.loss(N, D) * noise, num_samples=20)
    predicted = [law.loss(np.array(8e5), np.array(4e6)) for law in laws]
    assert min(predicted) < LAW.loss(np.array(8e5), np.array(4e6)) < max(predicted)


def test_too_few_runs_are_not_fitted() -> None:
    assert can_fit(N, D)
    assert not can_fit(N[N < 1e5], D[N < 1e5])
    assert "fitted to 16 runs (10,000.0" in describe_scaling_law(N, D, losses=LAW.loss(N, D))
