"""Several devices of one process train the model that one device trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import device_runs
import jax
import numpy as np
import optax
import pytest
from conftest import ROOT
from helpers import assert_rows_agree, slow
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from charrnn_jax.errors import UserError
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.training.devices import make_mesh, state_shardings
from charrnn_jax.training.loop import train
from charrnn_jax.training.train_step import TrainState, create_train_state
from charrnn_jax.workdir.run import load_run

# Sums over a batch or over hidden units are added in another order, which changes the last bits of
# float32 (6e-8); Adam divides by the root of squared gradients and so makes more of it where they
# are small. Three steps stay an order of magnitude below this; from there on it grows.
LOSSES_AGREE, ARRAYS_AGREE = 1e-6, 1e-5


@pytest.mark.parametrize(
    ("cell", "implementation", "optimizer"),
    [
        slow("lstm", "fused", "adam"),
        slow("rnn", "scan", "adam"),
        slow("mogrifier_lstm", "fused", "adam"),
        slow("min_lstm", "parallel", "adam"),
        slow("rg_lru", "parallel", "adam"),
        # The bias of the sLSTM's input gate has a gradient of nothing but rounding, which Adam
        # would make a whole step of.
        slow("slstm", "fused", "sgd"),
        slow("slstm", "scan", "sgd"),
    ],
)
def test_two_devices_train_the_model_of_one(cell: str, implementation: str, optimizer: str) -> None:
    """They share the batch, or the hidden units; what is dropped out is the same."""
    case = {"cell": cell, "implementation": implementation, "optimizer": optimizer, "dropout": 0.3}
    losses, state = device_runs.train_on(1, 1, **case)
    for mesh in ((2, 1), (1, 2)):
        of_losses, of_arrays = device_runs.differences(*mesh, losses=losses, state=state, **case)
        assert of_losses < LOSSES_AGREE
        assert of_arrays < ARRAYS_AGREE


def test_devices_share_the_columns_of_what_has_hidden_units() -> None:
    """The last axis of kernels and biases, and of Adam's moments of them."""
    mesh = make_mesh(data_devices=1, model_devices=2, batch_size=4, hidden_size=6)
    state = create_train_state(CharRNN(5, 3, 6), optax.adam(1e-3), seed=0, batch_size=4)
    shardings = state_shardings(state, mesh)
    for tree in (shardings.params, shardings.opt_state[0].mu):
        for leaf in jax.tree.leaves(tree["layers_0"]["cell"]):
            assert leaf.spec in (P(None, "model"), P("model"))
        assert tree["dense"]["kernel"].spec == P(None, None)
    assert jax.tree.leaves(shardings.carry)[0].spec == P("data", "model")


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)])
def test_program_of_several_devices_lowers_for_accelerators(mesh: tuple[int, int]) -> None:
    run_steps, arguments = device_runs.call_on(
        *mesh, cell="gru", implementation="fused", dropout=0.3
    )
    lowered = run_steps.trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
    assert "sharding" in lowered.as_text()


def assert_shared(state: TrainState, *, data: int, model: int) -> None:
    """Each device has its columns of the cells and of Adam's moments of them, its rows and columns
    of the carry, and all of everything else."""

    def sizes(tree) -> list[tuple[int, ...]]:
        return [leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(tree)]

    def is_adam(node: object) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    columns = state.model.hidden_size // model
    (moments,) = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    for tree in (state.params, state.evaluated_params(), moments.mu, moments.nu):
        cell = jax.tree.leaves(tree["layers_0"])
        assert sizes(cell) == [(*leaf.shape[:-1], columns) for leaf in cell]
        ends = jax.tree.leaves((tree["embedding"], tree["dense"]))
        assert sizes(ends) == [leaf.shape for leaf in ends]
    assert sizes(state.carry) == [(leaf.shape[0] // data, columns) for leaf in state.carry]


def run_on_eight_devices(cases) -> None:
    command = [sys.executable, "tests/device_runs.py", json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences, restored = map(json.loads, done.stdout.splitlines()[-2:])
    assert len(differences) == sum(len(meshes) for _, meshes in cases)
    for of_losses, of_arrays in differences:
        assert of_losses < LOSSES_AGREE
        assert of_arrays < ARRAYS_AGREE
    assert restored


@pytest.mark.slow
def test_eight_devices_train_the_model_of_one_and_restore_what_others_saved() -> None:
    case = {"cell": "gru", "implementation": "fused", "dropout": 0.3}
    run_on_eight_devices([(case, [(4, 2)])])


@pytest.mark.slow
def test_eight_devices_train_other_cells_and_forms_in_other_arrangements() -> None:
    names = ("cell", "implementation", "dropout")
    cases = ("gru", "scan", 0.3), ("lstm", "fused", 0.3), ("rnn", "fused", 0.0)
    meshes = [(8, 1), (4, 2), (1, 8)]
    run_on_eight_devices([(dict(zip(names, case, strict=True)), meshes) for case in cases])


@pytest.mark.slow
def test_run_goes_on_with_other_devices(tiny_config: ConfigDict, tmp_path: Path) -> None:
    """One device, then two that share the batch, then two that share the hidden units."""
    tiny_config.data.batching, tiny_config.model.cell = "lanes", "rnn"
    tiny_config.train.averaging = "ema"
    for epochs, (data, model) in enumerate([(1, 1), (2, 1), (1, 2)], start=1):
        tiny_config.train.num_epochs = epochs
        tiny_config.train.data_devices, tiny_config.train.model_devices = data, model
        state = train(tiny_config, tmp_path / "many")
        assert len(state.step.sharding.device_set) == data * model
        assert_shared(state, data=data, model=model)
    tiny_config.train.data_devices, tiny_config.train.model_devices = 0, 1
    train(tiny_config, tmp_path / "one")
    assert_rows_agree(tmp_path / "many", tmp_path / "one")
    run = load_run(tmp_path / "many", checkpoint="latest")
    evaluated = jax.device_get(state.evaluated_params())
    jax.tree.map(np.testing.assert_array_equal, run.params, evaluated)
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(run.params))


@pytest.mark.parametrize(
    ("data", "model", "batch_size", "message"),
    [
        (2, 1, 7, "batch_size is 7, which 2 devices cannot share"),
        (3, 1, 6, "number of devices, which is 2: set other values"),
        (2, 2, 8, "data_devices=2 times --config.train.model_devices=2"),
        (1, 3, 8, "number of devices, which is 2: set other values"),
    ],
)
def test_devices_that_cannot_share_are_refused(
    data: int, model: int, batch_size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(data_devices=data, model_devices=model, batch_size=batch_size, hidden_size=12)
    with pytest.raises(UserError, match="hidden_size is 15, which 2 devices"):
        make_mesh(data_devices=1, model_devices=2, batch_size=8, hidden_size=15)


def test_accelerators_are_all_used_unless_the_batch_does_not_divide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mesh(batch_size: int) -> dict[str, int]:
        return dict(
            make_mesh(data_devices=0, model_devices=1, batch_size=batch_size, hidden_size=8).shape
        )

    assert mesh(8) == {"data": 1, "model": 1}  # of a CPU one
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert mesh(8) == {"data": 2, "model": 1}
    assert capsys.readouterr().out == ""
    assert mesh(7) == {"data": 1, "model": 1}
    assert "Using 1 of 2 devices" in capsys.readouterr().out
