"""How many CPU cores share a batch: measured once, recorded, and the same when a run is resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import device_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from helpers import assert_bitwise_equal
from ml_collections import ConfigDict

from charrnn_jax import host_devices
from charrnn_jax.training import measured, sharing
from charrnn_jax.training.loop import train
from charrnn_jax.training.setup import make_setup
from charrnn_jax.training.train_step import train_step


def test_gradients_of_all_parameters_are_summed_in_one_operation() -> None:
    """On a CPU each operation between devices costs as much as a small product."""
    run_steps, arguments = device_runs.call_on(
        2, 1, cell="lstm", implementation="fused", dropout=0.3
    )
    program = run_steps.lower(*arguments).compile().as_text()
    assert program.count(" all-reduce(") + program.count(" all-reduce-start(") == 1


@pytest.mark.slow
def test_run_of_two_devices_resumes_bit_for_bit_on_two(
    tiny_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_config.data.batching, tiny_config.model.dropout = "lanes", 0.2
    tiny_config.model.cell = "rnn"
    tiny_config.train.data_devices = 2
    undisturbed = train(tiny_config, tmp_path / "undisturbed")
    tiny_config.train.num_epochs = 1
    train(tiny_config, tmp_path / "run")
    tiny_config.train.num_epochs, tiny_config.train.data_devices = 2, 0
    state = train(tiny_config, tmp_path / "run")
    assert len(state.step.sharding.device_set) == 2
    assert_bitwise_equal(state, undisturbed)
    assert "differ by rounding" not in capsys.readouterr().out
    tiny_config.train.num_epochs, tiny_config.train.data_devices = 3, 1
    make_setup(tiny_config, tmp_path / "run")
    assert "shared by 2 device(s), and is now by 1" in capsys.readouterr().out


def num_devices(config: ConfigDict, workdir: Path) -> int:
    setup, _ = sharing.share_among_cores(make_setup(config, workdir), train_step)
    assert setup.state.step.sharding.device_set == set(setup.mesh.devices.flat)
    return setup.mesh.size


def test_faster_number_of_devices_is_measured_once_and_remembered(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_LEAST_FLOPS", 0)
    measurements = []

    def measure(calls: dict[str, measured.Call]) -> dict[str, float]:
        measurements.append(seconds)
        return dict(zip(calls, seconds, strict=True))

    monkeypatch.setattr(measured, "measure", measure)
    tiny_config.data.batch_size, tiny_config.model.cell = 16, "rnn"
    seconds = (1.0, 0.9)
    assert num_devices(tiny_config, tmp_path) == 2
    seconds = (1.0, 2.0)
    assert num_devices(tiny_config, tmp_path) == 2  # from the file
    assert measurements == [(1.0, 0.9)]
    file = measured.cache_folder() / "devices.json"
    assert list(json.loads(file.read_text()).values()) == ["2 devices"]
    file.write_text("damaged")
    assert num_devices(tiny_config, tmp_path) == 1
    tiny_config.model.hidden_size, seconds = 20, (1.0, 0.97)
    assert num_devices(tiny_config, tmp_path) == 1  # not clearly faster
    assert len(measurements) == 3
    # Nothing to measure: the user has chosen, or devices would have few rows, or the run is short.
    tiny_config.model.hidden_size, tiny_config.train.data_devices = 24, 2
    assert num_devices(tiny_config, tmp_path) == 2
    tiny_config.train.data_devices, tiny_config.data.batch_size = 0, 14
    assert num_devices(tiny_config, tmp_path) == 1
    monkeypatch.undo()
    tiny_config.data.batch_size = 16
    assert num_devices(tiny_config, tmp_path) == 1
    assert len(measurements) == 3


def test_measured_programs_leave_their_arguments_and_are_called_in_turn(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real programs, on one device and on two; training then starts from the same state."""
    monkeypatch.setattr(sharing, "_LEAST_FLOPS", 0)
    tiny_config.data.batch_size, tiny_config.model.cell = 16, "rnn"
    before = jax.device_get(make_setup(tiny_config, tmp_path).state.params)
    setup, run_steps = sharing.share_among_cores(make_setup(tiny_config, tmp_path), train_step)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(setup.state.params))
    state, _ = run_steps(*sharing._call(setup, run_steps, ())[1])
    assert int(state.step) == setup.steps_per_call
    order = []

    def program(name: str, x: jax.Array) -> jax.Array:
        order.append(name)
        return jax.jit(lambda x: x + 1, donate_argnums=0)(x)

    x = jnp.zeros(3)
    calls = {name: (lambda x, name=name: program(name, x), (x,)) for name in "ab"}
    seconds = measured.measure(calls)
    assert order[:4] == ["a", "b", "a", "b"]
    assert list(seconds) == ["a", "b"]
    assert x.sum() == 0  # it was not donated


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, host_devices.num_cores()),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
    ],
)
def test_each_core_is_a_device_unless_the_environment_says_otherwise(
    environment: dict[str, str], expected: int
) -> None:
    code = """
from charrnn_jax.host_devices import make_cores_devices
make_cores_devices()
import jax
print(jax.device_count())
make_cores_devices()  # JAX is in use, which is no error
"""
    others = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**others, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"
