"""Open-loop training against its definition in one pass, and whole runs with it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    B,
    CallAt,
    T,
    V,
    assert_bitwise_equal,
    assert_rows_agree,
    assert_same_run,
    make,
    slow,
)
from ml_collections import ConfigDict

from charrnn_jax.config import override_values, validate
from charrnn_jax.data.batches import Batch
from charrnn_jax.data.vocabulary import UNK_ID
from charrnn_jax.errors import UserError
from charrnn_jax.training import sharing
from charrnn_jax.training.dispatch import make_run_steps
from charrnn_jax.training.loop import train
from charrnn_jax.training.open_loop import OpenLoop, make_open_loop, mix_inputs
from charrnn_jax.training.replicas import program_key, train_replicas
from charrnn_jax.training.train_step import TrainState, create_train_state, train_step

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"train.sampled_inputs": "linear"},
    "inverse_sigmoid": {"train.sampled_inputs": "inverse_sigmoid", "train.sampled_share": 1.0},
    "rollouts": {"train.rollout_length": 7},
    "both": {"train.sampled_inputs": "linear", "train.rollout_length": 3},
}
METHODS["warm-up"] = {
    "train.length_warmup_steps": 9,
    "train.initial_length": 10,
    "data.offset": "random",
    "data.carry_reset_rate": 0.3,
}
METHODS["everything"] = METHODS["warm-up"] | METHODS["both"]
OPEN_LOOPS = {
    "sampled": OpenLoop("linear", 0.7, 0, 9),
    "rollouts": OpenLoop("none", 0.5, 4, 9),
    "both": OpenLoop("linear", 0.5, 3, 9),
}


def state_and_batch(cell: str, num_layers: int = 1) -> tuple[TrainState, Batch]:
    """In the last step of nine, when the share of own inputs is largest."""
    model, params, carry, tokens = make(cell, num_layers)
    tokens = jnp.concatenate([tokens, tokens[:, :1]], axis=1)
    state = create_train_state(model, optax.sgd(1.0), seed=1, batch_size=B)
    state = replace(state, params=params, carry=carry, step=jnp.int32(8))
    resets = jnp.array([True] + [False] * (B - 1))
    return state, Batch(tokens[:, :-1], tokens[:, 1:], resets)


def masks_of(open_loop: OpenLoop, state: TrainState) -> tuple[np.ndarray, np.ndarray, Any]:
    """Which inputs are own, which losses count [B, T], and the key of what is drawn."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    coin_key, span_key, draw_key = jax.random.split(key, 3)
    is_own, counted = np.zeros((B, T), bool), np.ones((B, T), bool)
    if open_loop.rollout_length:
        uniform = np.asarray(jax.random.uniform(span_key, (B, 1)))[:, 0]
        for row, u in enumerate(uniform):
            first = 1 + int(u * (T - 1 - open_loop.rollout_length))
            counted[row, first : first + open_loop.rollout_length] = False
        is_own |= ~counted
    if open_loop.sampled_inputs == "linear":
        coins = np.asarray(jax.random.uniform(coin_key, (B, T)))
        is_own |= coins < open_loop.sampled_share * int(state.step) / open_loop.num_steps
    is_own[:, 0] = False
    return is_own, counted, draw_key


@pytest.mark.parametrize(
    ("name", "cell", "num_layers"),
    [("both", "gru", 1), slow("sampled", "lstm", 2), slow("rollouts", "rnn", 1)],
)
def test_two_passes_equal_one_that_draws_and_differentiates(
    name: str, cell: str, num_layers: int
) -> None:
    """One loop with the gradient; every character is drawn from the logits before it."""
    open_loop = OPEN_LOOPS[name]
    state, batch = state_and_batch(cell, num_layers)
    model = state.model
    is_own, counted, draw_key = masks_of(open_loop, state)
    noise = jax.random.gumbel(draw_key, (T, B, V)).at[:, :, UNK_ID].set(-jnp.inf)
    first = model.initialize_carry(B)
    carry = jax.tree.map(lambda f, c: c.at[0].set(f[0]), first, state.carry)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def one_pass(params: Any) -> Any:
        def read(carried: Any, x: Any) -> Any:
            carry, drawn = carried
            true, target, own, counts, noise = x
            token = jnp.where(own, drawn, true)
            carry, logits = model.apply({"params": params}, carry, token[:, None])
            log_p = jax.nn.log_softmax(logits[:, 0])
            losses = -jnp.take_along_axis(log_p, target[:, None], axis=1)[:, 0]
            return (carry, jnp.argmax(log_p + noise, axis=-1)), losses * counts

        by_time = (batch.inputs.T, batch.targets.T, is_own.T, counted.T, noise)
        (new_carry, _), losses = jax.lax.scan(read, (carry, batch.inputs[:, 0]), by_time)
        return losses.sum() / counted.sum(), new_carry

    (loss, new_carry), gradient = one_pass(state.params)
    new, metrics = jax.jit(train_step)(replace(state, open_loop=open_loop), batch)
    assert int(metrics["loss"].count) == counted.sum() == B * (T - open_loop.rollout_length)
    np.testing.assert_allclose(metrics["loss"].nats_per_char, loss, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
    jax.tree.map(lambda p, q, g: close(p - q, g), state.params, new.params, gradient)
    jax.tree.map(close, new.carry, new_carry)


def test_rollouts_are_between_true_characters_and_share_is_as_asked() -> None:
    state, batch = state_and_batch("gru")
    rows = 2000
    batch = Batch(jnp.full((rows, T), V + 5), jnp.zeros((rows, T), jnp.int32))

    def own(open_loop: OpenLoop, progress: float) -> tuple[np.ndarray, Batch]:
        model = state.model
        mixed = open_loop.replace_inputs(
            batch,
            params=state.params,
            carry=model.initialize_carry(rows),
            model=model,
            zoneout=0.0,
            progress=progress,
            key=jax.random.key(0),
        )
        return np.asarray(mixed.inputs) < V, mixed  # true characters here are none of the model's

    for length in (3, T - 2):
        is_own, mixed = own(OpenLoop("none", 0.5, length, 9), 0)
        assert (is_own.sum(axis=1) == length).all()
        np.testing.assert_array_equal(mixed.counted, ~is_own)
        assert not is_own[:, 0].any()
        assert not is_own[:, -1].any()
        assert is_own[:, 1:-1].any(axis=0).all()
        assert (np.abs(np.diff(is_own, axis=1)).sum(axis=1) == 2).all()  # one span
    for name, progress, share in (
        ("linear", 0, 0.0),
        ("linear", 0.3, 0.24),
        ("inverse_sigmoid", 0, 0.8 * 0.01),
        ("inverse_sigmoid", 0.5, 0.4),
        ("inverse_sigmoid", 1, 0.8 * 0.99),
        ("linear", 1.5, 0.8),  # longer than planned
    ):
        open_loop = OpenLoop(name, 0.8, 0, 100)
        assert float(open_loop.share(progress)) == pytest.approx(share, abs=2e-4)
    is_own, mixed = own(open_loop, 0.5)
    assert mixed.counted is None
    assert is_own[:, 1:].mean() == pytest.approx(0.4, abs=0.01)
    assert not is_own[:, 0].any()


def test_share_of_true_inputs_is_the_inverse_sigmoid_of_the_paper() -> None:
    """k / (k + exp(i / k)), section 2.4."""
    k, num_steps = 100.0, 1000
    for step in (0, 200, 500, 999):
        i = 2 * k * np.log(k) * step / num_steps
        true = 1 - OpenLoop("inverse_sigmoid", 1.0, 0, num_steps).share(step / num_steps)
        assert float(true) == pytest.approx(k / (k + np.exp(i / k)), abs=1e-5)


@pytest.mark.slow
def test_drawn_characters_follow_the_distribution_of_the_model() -> None:
    model, params, _, tokens = make("gru")
    rows = 20_000
    inputs = jnp.broadcast_to(tokens[:1, :4], (rows, 4))
    is_own = jnp.array([[False, False, False, True]])
    carry = model.initialize_carry(rows)
    mixed = mix_inputs(
        inputs,
        jnp.broadcast_to(is_own, inputs.shape),
        params=params,
        carry=carry,
        model=model,
        key=jax.random.key(0),
    )
    _, logits = model.apply({"params": params}, model.initialize_carry(1), tokens[:1, :3])
    p = np.exp(np.asarray(logits[0, -1], np.float64))
    p[UNK_ID] = 0
    p /= p.sum()
    counts = np.bincount(np.asarray(mixed[:, 3]), minlength=V)
    np.testing.assert_allclose(counts / rows, p, atol=4 * 0.5 / rows**0.5)
    assert counts[UNK_ID] == 0
    np.testing.assert_array_equal(mixed[:, :3], inputs[:, :3])


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture
def lanes_config(tiny_config: ConfigDict) -> ConfigDict:
    tiny_config.data.batching, tiny_config.model.cell = "lanes", "rnn"
    tiny_config.train.num_steps, tiny_config.train.log_every_steps = 12, 3
    tiny_config.train.evaluate_every_steps = tiny_config.train.sample_every_steps = 12
    return tiny_config


@pytest.mark.parametrize(
    "name",
    [
        slow("everything"),
        slow("warm-up"),
        slow("linear"),
        slow("inverse_sigmoid"),
        slow("rollouts"),
    ],
)
def test_run_resumed_in_the_middle_is_the_undisturbed_one(
    lanes_config: ConfigDict, tmp_path: Path, name: str
) -> None:
    """With a warm-up, it is stopped in the middle of that."""
    config = override_values(lanes_config, METHODS[name])
    config.train.checkpoint_every_steps = 4
    whole = train(config, tmp_path / "whole")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "resumed", hooks=[CallAt(4, stop)])
    resumed = train(config, tmp_path / "resumed")
    assert_bitwise_equal(resumed, whole)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.slow
def test_replicas_of_other_shares_spans_and_resets_are_bit_for_bit_what_they_are_alone(
    lanes_config: ConfigDict, tmp_path: Path
) -> None:
    base = override_values(
        lanes_config, {**METHODS["both"], "train.length_warmup_steps": 4, "data.offset": "random"}
    )
    changes: list[dict[str, Any]] = [
        {"train.sampled_share": 0.2, "seed": 1},
        {"train.sampled_share": 1.0, "train.rollout_length": 6, "data.carry_reset_rate": 0.4},
    ]
    configs = [override_values(base, change) for change in changes]
    assert len({program_key(config) for config in configs}) == 1
    assert train_replicas(configs, [tmp_path / "a", tmp_path / "b"], mapping="map") == [None] * 2
    for config, name in zip(configs, "ab", strict=True):
        train(config, tmp_path / f"{name} alone")
        assert_same_run(tmp_path / name, tmp_path / f"{name} alone")


@pytest.mark.slow
def test_each_length_compiles_one_program(
    lanes_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, programs = [], []

    def remembered(*args: Any, sequence_length: int, **settings: Any) -> Any:
        lengths.append(sequence_length)
        programs.append(make_run_steps(*args, sequence_length=sequence_length, **settings))
        return programs[-1]

    monkeypatch.setattr(sharing, "make_run_steps", remembered)
    warm_up = {"train.length_warmup_steps": 9, "train.initial_length": 5}
    train(override_values(lanes_config, warm_up), tmp_path)
    assert sorted(lengths) == [5, 10, 20]
    assert [program._cache_size() for program in programs] == [1, 1, 1]


@pytest.mark.slow
def test_two_devices_draw_the_characters_of_one(lanes_config: ConfigDict, tmp_path: Path) -> None:
    config = override_values(lanes_config, {**METHODS["both"], "data.carry_reset_rate": 0.3})
    for num_devices in (1, 2):
        config.train.data_devices = num_devices
        train(config, tmp_path / str(num_devices))
    assert_rows_agree(tmp_path / "2", tmp_path / "1")


def test_a_share_or_span_of_zero_leaves_the_first_pass_out(tiny_config: ConfigDict) -> None:
    zero = override_values(
        tiny_config, {"train.sampled_inputs": "linear", "train.sampled_share": 0.0}
    )
    assert make_open_loop(zero.train, num_steps=9) is None
    assert make_open_loop(tiny_config.train, num_steps=9) is None
    for name in ("linear", "inverse_sigmoid", "rollouts", "both"):
        config = override_values(tiny_config, METHODS[name])
        assert make_open_loop(config.train, num_steps=9) is not None
        assert program_key(config) != program_key(zero)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.rollout_length": 19}, "have room for 18"),
        (
            {"train.rollout_length": 7, "train.length_warmup_steps": 5, "train.initial_length": 8},
            "sequences of 8 characters have room for 6",
        ),
        (
            {"train.length_warmup_steps": 5, "train.initial_length": 21},
            "it must be at most config.data.sequence_length, which is 20",
        ),
        ({"train.sampled_share": 1.5}, "from 0 to 1"),
        ({"data.carry_reset_rate": 0.1, "data.batching": "chunks"}, "leave one of them out"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_config: ConfigDict, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        validate(override_values(tiny_config, changes))
