"""The gradient-noise scale against problems whose scale is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import E, H, T, V
from ml_collections import ConfigDict

from charrnn_jax.config import override_values, validate
from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.models.regularisers.activation_penalty import ActivationPenalty
from charrnn_jax.training.gradient_noise import GradientNoise, choose_num_parts, squared_norms
from charrnn_jax.training.loop import train
from charrnn_jax.training.train_step import create_train_state, train_step
from charrnn_jax.workdir.json_lines import read_json_lines


def test_the_estimate_is_without_bias() -> None:
    """Gradients of known mean and covariance: |G|^2 = 5 and trace(Sigma) = 1 + 4 + 9."""
    rng = np.random.default_rng(0)
    mean, deviation = np.array([1.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0])
    estimates = []
    for _ in range(4000):
        parts = (mean + deviation * rng.normal(size=(4, 3, 3))).mean(axis=1)  # 4 parts of 3
        small, large = np.sum(parts**2, axis=1).mean(), np.sum(parts.mean(axis=0) ** 2)
        estimates.append(GradientNoise.estimate(small, large, part_size=3, batch_size=12))
    np.testing.assert_allclose(np.mean(estimates, axis=0), (5.0, 14.0), rtol=0.02)


def test_the_norms_are_those_of_the_gradients_of_parts_and_of_the_batch() -> None:
    """From the carry of the state, with penalties: of the batch, the gradient of a step."""
    size, model = 6, CharRNN(V, E, H)
    penalties = (ActivationPenalty(0.7),)
    state = create_train_state(
        model, optax.sgd(0.1), seed=0, batch_size=size, regularisers=penalties
    )
    rng = np.random.default_rng(0)
    carry = jax.tree.map(lambda c: jnp.float32(rng.normal(size=c.shape)), state.carry)
    state = state.replace(carry=carry, step=jnp.int32(7))
    inputs, targets = rng.integers(0, V, (2, size, T))

    @jax.jit
    @jax.grad
    def gradient(params, carry, inputs, targets):
        _, activations = model.apply({"params": params}, carry, inputs, method="run")
        loss = cross_entropy(activations.logits, targets).mean()
        return loss + 0.7 * jnp.mean(activations.outputs[-1] ** 2)

    def square(rows: slice) -> float:
        own = jax.tree.map(lambda c: c[rows], carry)
        return optax.tree.norm(gradient(state.params, own, inputs[rows], targets[rows])) ** 2

    kept = np.zeros((1, size), bool)
    small, large = squared_norms(
        state, Batch(inputs[None], targets[None], kept), num_parts=3, loss_fn=cross_entropy
    )
    parts = [square(slice(k, None, 3)) for k in range(3)]
    np.testing.assert_allclose(small, np.mean(parts), rtol=1e-5)
    np.testing.assert_allclose(large, square(slice(None)), rtol=1e-5)
    batch = Batch(inputs, targets, kept[0])
    _, metrics = jax.jit(train_step)(state, batch)
    np.testing.assert_allclose(large, metrics["gradient_norm"] ** 2, rtol=1e-5)
    assert [choose_num_parts(n) for n in (2, 12, 64, 11)] == [2, 6, 8, 11]


@pytest.mark.slow
def test_noise_is_written_at_evaluations_and_training_is_the_same_without(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.train.num_steps, tiny_config.train.evaluate_every_steps = 8, 4
    tiny_config.data.batching = "lanes"
    plain = train(tiny_config, tmp_path / "plain")
    tiny_config.train.gradient_noise = "on"
    state = train(tiny_config, tmp_path / "noise")
    jax.tree.map(np.testing.assert_array_equal, plain.params, state.params)
    rows = [
        r
        for r in read_json_lines(tmp_path / "noise" / "metrics.jsonl")
        if "train/gradient_square" in r
    ]
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        ratio = row["train/gradient_variance"] / row["train/gradient_square"]
        assert row["train/gradient_noise"] == pytest.approx(ratio)
        assert 0 < row["train/gradient_noise"] < 100
    with pytest.raises(UserError, match="compares parts of a batch"):
        validate(override_values(tiny_config, {"data.batch_size": 1}))
