"""`train.patience`: training ends when the validation loss no longer improves."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_bitwise_equal, assert_same_run, rows_without_time, signal_at
from ml_collections import ConfigDict

from charrnn_jax.config import override_values
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.training import hooks
from charrnn_jax.training.early_stopping import EarlyStopping
from charrnn_jax.training.loop import train
from charrnn_jax.training.replicas import train_replicas
from charrnn_jax.workdir.checkpoints import steps
from charrnn_jax.workdir.json_lines import read_json_lines
from charrnn_jax.workdir.run import load_run

LOSSES = [3.0, 2.0, 2.5, 2.0, 1.5, 1.75, 1.6, 1.55, 1.7, 1.8]  # nats/char; 2.0 again is no best


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Losses of the next evaluations, taken from the front."""
    losses = list(LOSSES)

    def scripted(*_: Any, **__: Any) -> tuple[CrossEntropy, None]:
        return CrossEntropy(100 * losses.pop(0), 100), None

    monkeypatch.setattr(hooks, "evaluate_above", scripted)
    return losses


@pytest.fixture
def patient(tiny_config: ConfigDict) -> ConfigDict:
    tiny_config.model.cell = "rnn"
    tiny_config.train.num_steps, tiny_config.train.evaluate_every_steps = 30, 3
    tiny_config.train.checkpoint_every_steps = 1000
    tiny_config.train.sample_every_steps, tiny_config.train.patience = 1000, 3
    tiny_config.data.test_fraction = 0.05
    return tiny_config


def test_training_ends_after_as_many_evaluations_without_a_new_best_and_resumes_with_more(
    patient: ConfigDict, tmp_path: Path, script: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    state = train(patient, tmp_path / "run")
    assert int(state.step) == steps(tmp_path / "run")[-1] == 24  # the best is that after step 15
    why = "3 evaluations in a row had no new best validation loss"
    best = "the best was 1.5000 nats/char after step 15; the test split was not used"
    assert f"Training stops early after step 24: {why}; {best}" in capsys.readouterr().out
    assert load_run(tmp_path / "run").step == 15
    samples = read_json_lines(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in samples] == [0, 24]  # that of the last step, too
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert_bitwise_equal(train(patient, tmp_path / "run"), state)
    assert f"has 24 steps, and {why}; {best}: a larger" in capsys.readouterr().out
    assert read_json_lines(tmp_path / "run" / "metrics.jsonl") == rows
    longer = override_values(patient, {"train.patience": 5})
    resumed = train(longer, tmp_path / "run")
    script[:] = LOSSES
    assert_bitwise_equal(resumed, train(longer, tmp_path / "patient"))
    assert int(resumed.step) == 30
    assert rows_without_time(tmp_path / "run") == rows_without_time(tmp_path / "patient")


def test_evaluations_before_a_stop_by_a_signal_count(
    patient: ConfigDict, tmp_path: Path, script: list[float], heeded_signals: None
) -> None:
    undisturbed = train(patient, tmp_path / "one")
    script[:] = LOSSES
    with pytest.raises(Interrupted):
        train(patient, tmp_path / "two", hooks=[signal_at(21)])
    assert_bitwise_equal(train(patient, tmp_path / "two"), undisturbed)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_each_replica_ends_by_itself_as_it_does_alone(patient: ConfigDict, tmp_path: Path) -> None:
    """One that soon diverges, and one that improves to its last step."""
    patient.train.patience, patient.train.max_loss_ratio = 2, 0.0
    configs = [override_values(patient, {"optimizer.learning_rate": rate}) for rate in (3.0, 1e-3)]
    workdirs = [tmp_path / str(index) for index in range(2)]
    for _ in range(2):  # the second time, nothing is left to train
        assert train_replicas(configs, workdirs, mapping="map") == [None, None]
        ends = [steps(workdir)[-1] for workdir in workdirs]
        assert ends[0] < ends[1] == 30
    for index, config in enumerate(configs):
        train(config, tmp_path / f"alone{index}")
        assert_same_run(workdirs[index], tmp_path / f"alone{index}")


def test_patience_needs_a_validation_split(patient: ConfigDict, tmp_path: Path) -> None:
    patient.data.validation_fraction = 0.0
    with pytest.raises(UserError, match="patience is 3, but there is no validation split"):
        train(patient, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def num_evaluations(losses: Sequence[float], *, patience: int) -> int:
    """After how many evaluations training ends; one more than there are: after none of them."""
    early_stopping = EarlyStopping(patience)
    counted: Iterator[tuple[int, float]] = enumerate(losses, start=1)
    for count, loss in counted:
        early_stopping.add(count, loss)
        if early_stopping.is_over:
            return count
    return len(losses) + 1


def test_only_a_lower_finite_loss_is_a_new_best() -> None:
    assert num_evaluations(LOSSES, patience=2) == 4
    assert num_evaluations(LOSSES, patience=3) == 8
    assert num_evaluations(LOSSES, patience=0) == len(LOSSES) + 1
    assert num_evaluations([math.nan, 2.0, 1.0, math.nan, -math.inf], patience=2) == 5
    assert num_evaluations([math.nan] * 5, patience=4) == 4
