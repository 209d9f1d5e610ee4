"""One step of training, and the state before the first, against what their docstrings promise."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import B, E, H, T, V, forward
from ml_collections import ConfigDict

from charrnn_jax.config import flatten, override_values
from charrnn_jax.data.batches import Batch, make_batches
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.models.char_rnn import CharRNN, make_model
from charrnn_jax.models.regularisers import make_regularisers
from charrnn_jax.training.open_loop import OpenLoop, make_open_loop
from charrnn_jax.training.optimizer import make_optimizer
from charrnn_jax.training.train_step import (
    TRACED_FIELDS,
    TracedHyperparameters,
    TrainState,
    create_train_state,
    train_step,
)

TOKENS = np.random.default_rng(0).integers(0, V, (B, T + 1))
BATCH = Batch(TOKENS[:, :-1], TOKENS[:, 1:])


def new_state(model: CharRNN, *, seed: int = 0, rate: float = 0.1, **kwargs) -> TrainState:
    return create_train_state(model, optax.sgd(rate), seed=seed, batch_size=B, **kwargs)


@pytest.mark.parametrize("noise", ["step", "locked"])
def test_step_k_draws_its_noise_from_the_key_and_k(noise: str) -> None:
    """The weights and the batch stay the same, so nothing but the noise can change the loss."""
    model = CharRNN(V, E, H, dropout=0.4, input_dropout=0.3, dropout_noise=noise)
    state = new_state(model, rate=0.0)
    params, key, losses = state.params, state.key, []
    step = jax.jit(train_step)
    for k in range(4):
        state, metrics = step(state, BATCH)
        dropout_key = jax.random.fold_in(key, k)
        carry = model.initialize_carry(B)
        _, logits = forward(params, carry, BATCH.inputs, model=model, dropout_key=dropout_key)
        expected = cross_entropy(logits, BATCH.targets).mean()
        losses.append(metrics["loss"].nats_per_char)
        np.testing.assert_allclose(losses[-1], expected, rtol=1e-5)
    assert len({round(loss, 4) for loss in losses}) == 4
    np.testing.assert_array_equal(*map(jax.random.key_data, (state.key, key)))


def test_what_a_seed_decides_differs_from_seed_to_seed() -> None:
    """Every matrix, and the key of the noise; the same seed gives the same again."""
    model = CharRNN(V, E, H, 2)
    first, again, other = (new_state(model, seed=seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    for one, two in zip(*map(jax.tree.leaves, (first.params, other.params)), strict=True):
        assert (one != two).all() if one.ndim > 1 else (one == two).all()
    keys = [jax.random.key_data(state.key).tolist() for state in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("init_scale", [1.0, 0.25])
def test_matrices_are_drawn_as_promised_times_init_scale(init_scale: float) -> None:
    """Embedding N(0, 1/E), input kernels of variance 1/E, orthogonal kernels; biases zero."""
    size = 48
    model = CharRNN(200, size, 64, init_scale=init_scale)
    params = jax.device_get(new_state(model).params)
    cell = params["layers_0"]["cell"]
    for kernel in (params["embedding"]["embedding"], cell["ir"]["kernel"]):
        np.testing.assert_allclose(np.std(kernel), init_scale / size**0.5, rtol=0.05)
    for gate in ("hr", "hz", "hn"):
        singular_values = np.linalg.svd(cell[gate]["kernel"], compute_uv=False)
        np.testing.assert_allclose(singular_values, init_scale, rtol=1e-4)
    np.testing.assert_allclose(np.std(params["dense"]["kernel"]), init_scale / 8, rtol=0.05)
    assert not any(leaf.any() for leaf in jax.tree.leaves(params) if leaf.ndim == 1)


def test_carry_is_kept_in_lanes_and_zero_in_chunks() -> None:
    """Each step is compared with the gradient at the carry that it should start from."""
    tokens = np.random.default_rng(0).integers(1, V, 150)
    model = CharRNN(V, E, H)

    @jax.jit
    @jax.grad
    def gradient_of(params, carry, batch):
        _, logits = model.apply({"params": params}, carry, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for batching in ("chunks", "lanes"):
        batches = make_batches(tokens, batching=batching, batch_size=B, sequence_length=9, seed=0)
        state = new_state(model)
        step_fn = jax.jit(train_step)
        zero = model.initialize_carry(B)
        for step in range(2 * batches.steps_per_epoch):
            kept = batching == "lanes" and step % batches.steps_per_epoch
            gradient = gradient_of(state.params, state.carry if kept else zero, batches[step])
            expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient)
            state, _ = step_fn(state, batches[step])
            jax.tree.map(close, state.params, expected)
        assert int(state.step) == 2 * batches.steps_per_epoch


def test_loss_is_a_sum_and_a_count_and_its_mean_is_minimised() -> None:
    """The metrics are those before the update; an own loss takes the place of the cross-entropy."""
    model = CharRNN(V, E, H)
    state = new_state(model)

    def halved(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return 0.5 * cross_entropy(logits, targets)

    @jax.jit
    @jax.value_and_grad
    def mean(params):
        _, logits = forward(params, model.initialize_carry(B), BATCH.inputs, model=model)
        return cross_entropy(logits, BATCH.targets).mean()

    value, gradient = mean(state.params)
    for loss_fn, factor in ((cross_entropy, 1.0), (halved, 0.5)):
        new, metrics = jax.jit(partial(train_step, loss_fn=loss_fn))(state, BATCH)
        assert int(metrics["loss"].count) == B * T
        np.testing.assert_allclose(metrics["loss"].total, factor * B * T * value, rtol=1e-5)
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(jax.device_get(gradient))))
        np.testing.assert_allclose(metrics["gradient_norm"], factor * norm, rtol=1e-5)
        jax.tree.map(
            lambda p, q, g, rate=0.1 * factor: np.testing.assert_allclose(
                q, p - rate * g, rtol=1e-5, atol=1e-6
            ),
            state.params,
            new.params,
            gradient,
        )


def test_every_traced_number_has_a_taker_that_uses_it(tiny_config: ConfigDict) -> None:
    """The table alone says what replicas may differ in, so none of its rows may lead nowhere."""
    config = override_values(
        tiny_config,
        {
            **{name: 0.5 for name, of in TRACED_FIELDS.items() if of.zero_is_another_program},
            "train.rollout_length": 3,
        },
    )
    takers = {
        "open_loop": set(OpenLoop.__dataclass_fields__),
        "model": set(CharRNN.__dataclass_fields__),
        "optimizer": set(
            inspect.signature(make_optimizer(config.optimizer, num_steps=9).update).parameters
        ),
        "averaging": {"ema_decay", "tail_fraction"},
    }
    hyper = TracedHyperparameters.from_config(config)
    for name, traced in TRACED_FIELDS.items():
        assert name in flatten(config)
        field = name.split(".")[-1]
        if traced.goes_to == "start":
            assert not any(field in numbers for numbers in vars(hyper).values())
            continue
        assert field in takers[traced.goes_to]
        assert float(getattr(hyper, traced.goes_to)[field]) == np.float32(flatten(config)[name])
    assert sum(map(len, vars(hyper).values())) == sum(
        traced.goes_to != "start" for traced in TRACED_FIELDS.values()
    )


SMALL = {
    "model.cell": "rnn",
    "model.num_layers": 2,
    "model.implementation": "scan",
    "optimizer.name": "sgd",
    "train.sampled_inputs": "linear",
}


@pytest.mark.slow
def test_a_traced_number_does_what_it_does_in_the_config(tiny_config: ConfigDict) -> None:
    """Each by itself: the step of another run's program is the step of its own."""
    base = {
        **{
            name: 0.2
            for name, traced in TRACED_FIELDS.items()
            if traced.goes_to in ("model", "regularisers")
        },
        "optimizer.weight_decay": 0.1,
        "optimizer.learning_rate": 0.01,
        "model.init_scale": 1.0,
        "seed": 3,
        "data.carry_reset_rate": 0.1,
        "train.sampled_share": 0.3,
        "train.rollout_length": 1,
        "train.activation_penalty": 0.5,
        "train.temporal_penalty": 0.5,
    }
    elsewhere = {name for name, traced in TRACED_FIELDS.items() if traced.goes_to == "averaging"}
    assert base.keys() | elsewhere == TRACED_FIELDS.keys()
    tokens = np.random.default_rng(0).integers(1, V, (4, 7)).astype(np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:])

    def state_of(values: dict[str, Any]) -> TrainState:
        config = override_values(tiny_config, {**SMALL, **values})
        state = create_train_state(
            make_model(config.model, vocabulary_size=V),
            make_optimizer(config.optimizer, num_steps=9),
            seed=config.seed,
            batch_size=4,
            regularisers=make_regularisers(config),
            open_loop=make_open_loop(config.train, num_steps=9),
        )
        return replace(state, step=jnp.int32(9))  # when the share of own inputs is largest

    step = jax.jit(train_step)
    common = step(state_of(base), batch)[0].params
    for name, traced in TRACED_FIELDS.items():
        if traced.goes_to in ("start", "averaging"):
            continue
        changed = {**base, name: base[name] * 2}
        alone = step(state_of(changed), batch)[0].params
        hyper = TracedHyperparameters.from_config(override_values(tiny_config, changed))
        together = jax.jit(partial(train_step, hyper=hyper))(state_of(base), batch)[0].params
        close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, together, alone)
        assert not all(
            jax.tree.leaves(jax.tree.map(partial(np.allclose, rtol=1e-6, atol=1e-7), alone, common))
        ), name
