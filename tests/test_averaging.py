"""Averaged weights against plain NumPy, and what a run does with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers import (
    E,
    H,
    V,
    assert_bitwise_equal,
    assert_same_run,
    rows_without_time,
    signal_at,
    slow,
)
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from charrnn_jax.config import default_config, override_values
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.evaluation.protocols import evaluate, make_protocol
from charrnn_jax.export.folder import export
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.training.averaging import average_weights, start_average
from charrnn_jax.training.loop import train
from charrnn_jax.training.replicas import train_replicas
from charrnn_jax.training.train_step import TracedHyperparameters, TrainState
from charrnn_jax.workdir.json_lines import read_json_lines
from charrnn_jax.workdir.run import load_run

STEPS = 12
WEIGHTS = np.random.default_rng(0).normal(size=(STEPS + 1, 3))  # at the start and after each step
DECAYS = [(1 + n) / (10 + n) for n in range(STEPS)]  # of an average without a limit


def averages_of(**fields: Any) -> list[np.ndarray]:
    """Evaluated weights at the start and after each step of a training with known weights."""
    overrides = {f"train.{name}": value for name, value in fields.items()}
    config = override_values(default_config(), overrides).train

    def known(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        step = state.step + 1
        return replace(state, step=step, params=jnp.asarray(WEIGHTS, jnp.float32)[step]), {}

    step = jax.jit(average_weights(known, config=config, num_steps=STEPS))
    states = [start_average(state_of(WEIGHTS[0]))]
    for _ in range(STEPS):
        states.append(step(states[-1], None)[0])
    return [np.asarray(state.evaluated_params()) for state in states]


def state_of(params: Any) -> TrainState:
    return TrainState(
        step=jnp.int32(0),
        params=jnp.asarray(params, jnp.float32),
        opt_state=(),
        carry=(),
        key=jax.random.key(0),
        model=CharRNN(V, E, H, num_layers=1, cell="rnn"),
        optimizer=optax.identity(),
    )


@pytest.mark.parametrize("decay", [0.4, 0.999])
def test_ema_is_a_weighted_mean_of_all_weights_so_far(decay: float) -> None:
    start, *averages = averages_of(averaging="ema", ema_decay=decay)
    expected = WEIGHTS[0]
    np.testing.assert_array_equal(start, np.float32(expected))
    for weights, average, growing in zip(WEIGHTS[1:], averages, DECAYS, strict=True):
        kept = min(decay, growing)
        expected = kept * expected + (1 - kept) * weights
        np.testing.assert_allclose(average, expected, atol=1e-6)


@pytest.mark.parametrize(("fraction", "num_averaged"), [(0.25, 3), (0.4, 5), (1.0, 12)])
def test_tail_is_the_mean_of_the_last_weights_and_before_it_the_weights_themselves(
    fraction: float, num_averaged: int
) -> None:
    averages = averages_of(averaging="tail", tail_fraction=fraction)
    first = STEPS - num_averaged + 1  # step after which the first weights are averaged
    for step, average in enumerate(averages):
        if step <= first:
            np.testing.assert_array_equal(average, np.float32(WEIGHTS[step]))
        else:
            mean = WEIGHTS[first : step + 1].mean(axis=0)
            np.testing.assert_allclose(average, mean, atol=1e-6)


def test_the_tail_of_a_training_with_a_time_limit_is_its_last_share_of_the_time() -> None:
    config = override_values(
        default_config(), {"train.averaging": "tail", "train.tail_fraction": 0.25}
    ).train
    step = average_weights(
        lambda state, batch, hyper: (replace(state, step=state.step + 1), {}),
        config=config,
        num_steps=1000,
    )
    state = start_average(state_of(0.0))
    counts = []
    for progress in (0.0, 0.5, 0.74, 0.75, 0.8, 1.0):
        hyper = TracedHyperparameters(optimizer={"progress": np.float32(progress)})
        state, _ = step(state, None, hyper=hyper)
        counts.append(int(state.average.count))
    assert counts == [0, 0, 0, 1, 2, 3]


@pytest.fixture
def averaged_config(tiny_config: ConfigDict) -> ConfigDict:
    tiny_config.model.cell = "rnn"
    tiny_config.train.num_steps, tiny_config.train.evaluate_every_steps = 24, 8
    tiny_config.train.averaging, tiny_config.train.tail_fraction = "tail", 0.5
    return tiny_config


def test_averaged_weights_are_evaluated_saved_and_exported_and_training_is_that_without_them(
    averaged_config: ConfigDict, tmp_path: Path
) -> None:
    averaged = train(averaged_config, tmp_path / "tail")
    plain = train(override_values(averaged_config, {"train.averaging": "none"}), tmp_path / "none")
    assert_bitwise_equal(replace(averaged, average=None), plain)
    run, raw = (load_run(tmp_path / name, checkpoint=24) for name in ("tail", "none"))
    jax.tree.map(np.testing.assert_array_equal, run.params, averaged.average.params)
    jax.tree.map(np.testing.assert_array_equal, raw.params, plain.params)
    assert not np.array_equal(run.params["dense"]["kernel"], raw.params["dense"]["kernel"])
    loss = evaluate(
        run.params,
        run.load_dataset().splits.with_context("validation"),
        model=run.model,
        protocol=make_protocol(run.config.evaluation),
    )
    assert loss.nats_per_char == run.loss
    assert run.loss != raw.loss
    rows, others = (
        [r["validation/loss"] for r in rows_without_time(tmp_path / n) if "validation/loss" in r]
        for n in ("tail", "none")
    )
    assert rows[0] == others[0]  # after 8 steps, before the tail
    assert rows[2] != others[2]
    best = load_run(tmp_path / "tail")
    export(best, tmp_path / "exported")
    weights = load_file(tmp_path / "exported" / "weights.safetensors")
    np.testing.assert_equal(weights, flatten_dict(best.params, sep="/"))


@pytest.mark.parametrize("averaging", [slow("tail"), slow("ema")])
def test_an_average_resumes_bit_for_bit(
    averaged_config: ConfigDict, tmp_path: Path, heeded_signals: None, averaging: str
) -> None:
    """Stopped before the tail, and twice in it."""
    averaged_config.train.averaging, averaged_config.train.steps_per_call = averaging, 3
    undisturbed = train(averaged_config, tmp_path / "one")
    for step in (8, 16):
        with pytest.raises(Interrupted):
            train(averaged_config, tmp_path / "many", hooks=[signal_at(step)])
    resumed = train(averaged_config, tmp_path / "many")
    assert_bitwise_equal(resumed, undisturbed)
    assert_same_run(tmp_path / "many", tmp_path / "one")
    with pytest.raises(UserError, match=r"train.averaging '.*' -> 'none'"):
        train(override_values(averaged_config, {"train.averaging": "none"}), tmp_path / "many")


@pytest.mark.slow
def test_replicas_have_tails_of_their_own_as_they_do_alone(
    averaged_config: ConfigDict, tmp_path: Path
) -> None:
    """Those of test_replicas.py have an exponential average."""
    configs = [
        override_values(averaged_config, {"train.tail_fraction": fraction})
        for fraction in (0.3, 0.6)
    ]
    workdirs = [tmp_path / str(index) for index in range(2)]
    assert train_replicas(configs, workdirs, mapping="map") == [None, None]
    for index, config in enumerate(configs):
        train(config, tmp_path / f"alone{index}")
        assert_same_run(workdirs[index], tmp_path / f"alone{index}")
    first, second = (read_json_lines(workdir / "metrics.jsonl")[-1] for workdir in workdirs)
    assert first["validation/loss"] != second["validation/loss"]


def test_a_run_has_one_average(averaged_config: ConfigDict, tmp_path: Path) -> None:
    averaged_config.optimizer.name = "schedule_free"
    with pytest.raises(UserError, match="has an average of its own"):
        train(averaged_config, tmp_path / "run")
    assert not list(tmp_path.iterdir())
