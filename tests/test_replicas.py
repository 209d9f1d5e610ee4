"""Replicas against the same runs trained alone."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_same_run, slow
from ml_collections import ConfigDict

from charrnn_jax.config import override_values, to_json
from charrnn_jax.errors import BusyError, DivergedError, Interrupted, UserError
from charrnn_jax.files import locked
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.dropout import Dropout
from charrnn_jax.registry import register_hook
from charrnn_jax.training import measured, replicas
from charrnn_jax.training.loop import train
from charrnn_jax.training.replicas import program_key, train_replicas
from charrnn_jax.training.train_step import TRACED_FIELDS
from charrnn_jax.workdir.checkpoints import Checkpoints, steps
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.run import load_run

VARIANTS: list[dict[str, Any]] = [
    {"seed": 0},
    {
        "seed": 1,
        "optimizer.learning_rate": 3e-3,
        "optimizer.weight_decay": 0.3,
        "train.ema_decay": 0.9,
        "train.tail_fraction": 0.5,
    },
    {
        "seed": 2,
        "model.dropout": 0.5,
        "model.input_dropout": 0.3,
        "model.zoneout": 0.4,
        "model.embedding_dropout": 0.3,
        "model.output_dropout": 0.4,
        "model.weight_dropout": 0.4,
        "train.activation_penalty": 0.4,
        "train.temporal_penalty": 0.4,
        "model.init_scale": 0.5,
    },
]


def variants(config: ConfigDict) -> list[ConfigDict]:
    """Configs that differ in every field that replicas may differ in."""
    config = override_values(
        config,
        {
            "model.dropout": 0.2,
            "model.input_dropout": 0.1,
            "model.zoneout": 0.2,
            "model.embedding_dropout": 0.1,
            "model.output_dropout": 0.2,
            "model.weight_dropout": 0.2,
            "train.activation_penalty": 0.2,
            "train.temporal_penalty": 0.2,
            "optimizer.weight_decay": 0.1,
            "train.averaging": "ema",
        },
    )
    config = override_values(config, {"optimizer.name": "adamw", "optimizer.schedule": "cosine"})
    config.optimizer.warmup_steps = 7
    return [override_values(config, variant) for variant in VARIANTS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ConfigDict], Path]:
    """Trains a config alone, or finds it again; returns the workdir."""
    workdirs: dict[str, Path] = {}

    def train_alone(config: ConfigDict) -> Path:
        key = to_json(config)
        if key not in workdirs:
            workdirs[key] = tmp_path_factory.mktemp("alone")
            train(config, workdirs[key])
        return workdirs[key]

    return train_alone


def params_of(workdir: Path) -> Any:
    return load_run(workdir, checkpoint="latest").params


@pytest.mark.parametrize(
    ("batching", "cell"),
    [
        slow("chunks", "gru"),
        *(slow("lanes", cell) for cell in ("rnn", "slstm", "rg_lru")),
    ],
)
def test_mapped_replicas_are_bit_for_bit_what_they_are_alone(
    tiny_config: ConfigDict,
    tmp_path: Path,
    alone: Callable[[ConfigDict], Path],
    batching: str,
    cell: str,
) -> None:
    tiny_config.data.batching, tiny_config.model.cell = batching, cell
    configs = variants(tiny_config)
    if not (CELLS[cell].zoneout and CELLS[cell].output):
        configs = [override_values(config, {"model.zoneout": 0.0}) for config in configs]
    workdirs = [tmp_path / str(index) for index in range(len(configs))]
    assert train_replicas(configs, workdirs, mapping="map") == [None] * len(configs)
    for config, workdir in zip(configs, workdirs, strict=True):
        assert_same_run(workdir, alone(config))


@pytest.mark.slow
def test_vmapped_replicas_are_mapped_ones_up_to_rounding(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.train.num_steps = 5  # Adam makes rounding grow
    configs = variants(tiny_config)
    for mapping in ("map", "vmap"):
        train_replicas(configs, [tmp_path / f"{mapping}{i}" for i in range(3)], mapping=mapping)
    for index in range(3):
        params = (params_of(tmp_path / f"{mapping}{index}") for mapping in ("map", "vmap"))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), *params)


@pytest.mark.slow
def test_a_killed_group_resumes_from_its_last_common_step(
    tiny_config: ConfigDict,
    tmp_path: Path,
    alone: Callable[[ConfigDict], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = [alone(config) for config in variants(tiny_config)]
    tiny_config.train.checkpoint_every_steps = 10
    configs = variants(tiny_config)
    workdirs = [tmp_path / str(i) for i in range(3)]
    save, saved = Checkpoints.save, []

    def save_and_die(*args: Any, metadata: CheckpointMetadata) -> None:
        """Dies after one replica has saved step 20, and before the others have."""
        save(*args, metadata=metadata)
        saved.append(metadata.step)
        if saved.count(20) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_replicas(configs, workdirs, mapping="map")
    assert [steps(workdir)[-1] for workdir in workdirs] == [20, 10, 10]
    assert train_replicas(configs, workdirs, mapping="map") == [None] * 3
    for workdir, reference in zip(workdirs, undisturbed, strict=True):
        assert_same_run(workdir, reference)


def test_a_signal_saves_every_replica_and_each_goes_on_alone(
    tiny_config: ConfigDict,
    tmp_path: Path,
    alone: Callable[[ConfigDict], Path],
    monkeypatch: pytest.MonkeyPatch,
    heeded_signals: None,
) -> None:
    configs = variants(tiny_config)
    workdirs = [tmp_path / str(i) for i in range(3)]
    save, signals = Checkpoints.save, [signal.SIGTERM]

    def save_and_signal(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if signals:
            os.kill(os.getpid(), signals.pop())

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_signal)
        with pytest.raises(Interrupted) as interrupted:
            train_replicas(configs, workdirs, mapping="map")
    assert interrupted.value.exit_code == 128 + signal.SIGTERM
    assert {load_run(w, checkpoint="latest").step for w in workdirs} == {interrupted.value.step}
    assert interrupted.value.step > 21  # the first that was saved
    train(configs[1], workdirs[1])
    assert_same_run(workdirs[1], alone(configs[1]))


def test_a_replica_that_diverges_does_not_stop_the_others(
    tiny_config: ConfigDict,
    tmp_path: Path,
    alone: Callable[[ConfigDict], Path],
    capsys: pytest.CaptureFixture[str],
    own_registries: None,
) -> None:
    seen: dict[str, list[type | None]] = {}

    class Seeing:
        """A hook that is left with the error of its own run."""

        every_steps = 0

        def __init__(self, workdir: Path):
            self.name = workdir.name

        def __enter__(self) -> None: ...

        def __exit__(self, kind: type | None, *_: object) -> None:
            seen.setdefault(self.name, []).append(kind)

        def __call__(self, step: int, state: object, metrics: dict) -> None: ...

    register_hook("seeing", lambda config, workdir: Seeing(workdir))
    tiny_config.train.hooks = "seeing"
    tiny_config.optimizer.name, tiny_config.model.cell = "sgd", "rnn"
    tiny_config.train.steps_per_call = 1  # so that much comes after the step that diverged
    rates = [0.1, 1e30, 0.2]
    configs = [override_values(tiny_config, {"optimizer.learning_rate": r}) for r in rates]
    workdirs = [tmp_path / str(i) for i in range(3)]
    first, second, third = train_replicas(configs, workdirs, mapping="map")
    assert (first, third) == (None, None)
    assert isinstance(second, DivergedError)
    assert seen == {"0": [None], "1": [DivergedError], "2": [None]}
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1] ")]
    assert said[-1] == f"[1] {second}"
    assert sum("learning_rate" in line for line in said) == 1  # after that it is left alone
    assert_same_run(workdirs[2], alone(configs[2]))


def test_runs_go_on_together_from_steps_that_they_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {"a": [10, 20], "b": [], "c": [20, 30], "d": [5], "e": [], "f": [5, 7, 20]}
    monkeypatch.setattr(replicas, "steps", lambda workdir: saved[workdir.name])
    groups = replicas._by_common_step([tmp_path / name for name in saved])
    assert groups == [(20, [0, 2, 5]), (0, [1, 4]), (5, [3])]


@pytest.mark.slow
def test_one_run_that_cannot_be_opened_does_not_stop_the_others(
    tiny_config: ConfigDict, tmp_path: Path, alone: Callable[[ConfigDict], Path]
) -> None:
    tiny_config.train.num_steps, tiny_config.model.cell = 2, "rnn"
    tiny_config.train.log_every_steps = 1
    configs = [override_values(tiny_config, {"seed": seed}) for seed in range(3)]
    workdirs = [tmp_path / str(seed) for seed in range(3)]
    workdirs[0].write_text("no folder")
    errors = train_replicas(configs, workdirs, mapping="map")
    assert [str(error) if error else None for error in errors] == [
        f"{workdirs[0]} is not a folder: give another --workdir",
        None,
        None,
    ]
    workdirs[0].unlink()
    with locked(workdirs[0], doing="training"):
        errors = train_replicas(configs, workdirs, mapping="map")
    assert isinstance(errors[0], BusyError)
    for config, workdir in zip(configs[1:], workdirs[1:], strict=True):
        assert_same_run(workdir, alone(config))


def test_runs_that_differ_in_more_are_no_replicas(tiny_config: ConfigDict, tmp_path: Path) -> None:
    other = override_values(tiny_config, {"optimizer.clip_norm": 5.0})
    with pytest.raises(UserError, match="replicas may differ only in seed, "):
        train_replicas([tiny_config, other], [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("num_bytes", "mapping", "sizes"),
    [(5.9e5, "map", [2, 1]), slow(5.9e5, "vmap", [1, 1, 1]), slow(0.0, "map", [1, 1, 1])],
)
def test_groups_are_cut_to_fit_the_memory(
    tiny_config: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_bytes: float,
    mapping: str,
    sizes: list[int],
) -> None:
    """Seen in the order of what is saved: a group saves its first step before its second."""
    save, saved = Checkpoints.save, []

    def remembered(*args: Any, **kwargs: Any) -> None:
        saved.append(kwargs["metadata"].step)
        save(*args, **kwargs)

    monkeypatch.setattr(replicas, "_memory_bytes", lambda: num_bytes)
    monkeypatch.setattr(Checkpoints, "save", remembered)
    tiny_config.model.cell, tiny_config.data.batch_size = "rnn", 20
    tiny_config.train.num_steps, tiny_config.train.checkpoint_every_steps = 2, 1
    configs = [override_values(tiny_config, {"seed": seed}) for seed in range(3)]
    train_replicas(configs, [tmp_path / str(i) for i in range(3)], mapping=mapping)
    assert saved == [step for size in sizes for step in (1, 2) for _ in range(size)]


def test_replicas_share_all_but_the_numbers_a_program_can_take(tiny_config: ConfigDict) -> None:
    keys = {program_key(config) for config in variants(tiny_config)}
    assert len(keys) == 1
    elsewhere = {"data.carry_reset_rate", "train.sampled_share", "train.rollout_length"}
    assert set.union(elsewhere, *map(set, VARIANTS)) == TRACED_FIELDS.keys()  # test_open_loop.py
    for change in (
        {"model.dropout": 0.1},
        {"model.output_dropout": 0.0},
        {"model.output_dropout": 0.1},
        {"train.temporal_penalty": 0.1},
        {"optimizer.weight_decay": 0.1},
        {"model.cell": "lstm"},
        {"optimizer.clip_norm": 1.0},
        {"train.num_steps": 3},
    ):
        assert program_key(override_values(tiny_config, change)) != program_key(tiny_config)


def test_the_faster_way_is_measured_once_and_remembered(
    tiny_config: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measured, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(replicas, "_MAP_ALONE", ())
    tiny_config.train.num_steps, tiny_config.model.cell = 1, "rnn"
    configs = [override_values(tiny_config, {"seed": seed}) for seed in range(2)]
    seconds = {"map": 1.0, "vmap": 0.5}
    monkeypatch.setattr(measured, "measure", lambda calls: seconds)
    for name in ("a", "b"):
        train_replicas(configs, [tmp_path / f"{name}{i}" for i in range(2)])
    assert capsys.readouterr().out.count("map 1000.0 ms, vmap 500.0 ms") == 1
    assert list(json.loads((tmp_path / "replicas.json").read_text()).values()) == ["vmap"]


@pytest.mark.parametrize("shared_axes", [(), (1,)])
def test_dropout_is_that_of_flax(shared_axes: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    rngs = {"dropout": jax.random.key(1)}
    expected = nn.Dropout(0.3, shared_axes).apply({}, x, deterministic=False, rngs=rngs)
    dropped = jax.jit(
        lambda rate: Dropout(rate, shared_axes).apply({}, x, deterministic=False, rngs=rngs)
    )(jnp.float32(0.3))
    np.testing.assert_allclose(dropped, expected, rtol=1e-6)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, deterministic=True), x)
