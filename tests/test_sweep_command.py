"""`charrnn sweep` with real worker processes."""

import csv
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import assert_same_run, slow

from charrnn_jax import load_run, train
from charrnn_jax.errors import UserError
from charrnn_jax.main import main
from charrnn_jax.sweeps.units import load_sweep
from charrnn_jax.workdir.checkpoints import Checkpoints

EXPERIMENT = """
from charrnn_jax.config import default_config

def get_config(arg=""):
    config = default_config()
    config.data.path = {text!r}
    config.data.batch_size = 8
    config.data.sequence_length = 20
    config.model.embedding_size = 8
    config.model.hidden_size = 16
    config.model.cell = "rnn"
    config.optimizer.name = "sgd"
    config.train.num_steps = 40
    config.train.evaluate_every_steps = 10
    config.train.log_every_steps = 5
    config.sample.prompt = "The "
    config.sample.num_chars = 10
    return config

def get_hyper(hyper):
    rates = hyper.product(
        [hyper.sweep("optimizer.learning_rate", [0.1, 1e30]), hyper.sweep("seed", range(2))]
    )
    return hyper.chainit([rates, hyper.fixed("sample.prompt", "#")])
"""


@pytest.fixture
def experiment(tmp_path: Path, text_file: Path) -> str:
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.format(text=str(text_file)))
    return f"--config={file}"


@pytest.mark.slow
def test_a_sweep_reports_on_all_units_and_trains_none_twice(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "sweep"
    command = ["sweep", experiment, f"--workdir={workdir}", "--workers=1"]
    assert main([*command, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "   3  waiting   learning_rate=1e+30,seed=1" in shown
    assert f"sweep {experiment} --workdir={workdir} --work_unit=3\n" in shown
    assert "2 processes, each with the units:\n0, 1, 2, 3\n4\n" in shown
    assert not workdir.exists()

    assert main(command) == 1  # what diverged or failed did not stop the others
    out, err = capsys.readouterr()
    assert "2 of 5 done, 2 diverged, 1 failed" in out
    assert "set another --config.sample.prompt" in out
    assert "--retry_failed" in err
    with open(workdir / "sweep.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 2 + ["diverged"] * 2 + ["failed"]
    for unit, row in zip(load_sweep(workdir)[:2], rows, strict=False):
        assert float(row["loss"]) == unit.read_result().loss
        assert load_run(unit.workdir, checkpoint="latest").step == 40
    for name in ("sweep.html", "sweep.md", "sweep.pdf", "sweep.svg"):
        assert (workdir / name).stat().st_size

    text = f"Text: {load_run(load_sweep(workdir)[0].workdir).corpus.name}"
    assert text in (workdir / "sweep.md").read_text(encoding="utf-8").replace("\\", "")
    assert main([*command, "--config.optimizer.momentum=0.5"]) == 2
    assert main([*command, "--config.train.num_steps=20"]) == 2
    assert "was trained with train.num_steps 40, not 20" in capsys.readouterr().err
    assert main([*command, "--config.optimizer.schedule=linear"]) == 2  # a run alone may change it
    assert "was trained with optimizer.schedule 'constant'" in capsys.readouterr().err

    logs = {file: file.stat().st_mtime_ns for file in (workdir / "logs").iterdir()}
    assert main(command) == 1
    assert {file: file.stat().st_mtime_ns for file in (workdir / "logs").iterdir()} == logs
    repaired = f"{experiment[9:]}"
    text = Path(repaired).read_text().replace('"#"', '"The"').replace("1e30", "0.2")
    Path(repaired).write_text(text)
    assert main([*command, "--retry_failed"]) == 0
    assert "5 of 5 done" in capsys.readouterr().out
    report = (workdir / "sweep.md").read_text(encoding="utf-8")
    assert "character by character, in one run of each" in report
    assert "on 410 characters of the validation split" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work_unit=5"], "give numbers from 0 to 4"),
        (["--work_unit=1-x"], "give numbers from 0 to 4"),
        (["--config.train.num_step=1"], "did you mean config.train.num_steps"),
        (["--workers=0"], "at least 1"),
        (["--baseline=model.cell=lstm"], "baseline"),
        (["--work_unit=0", "--dry_run"], "--work_unit cannot be used with"),
    ],
)
def test_wrong_arguments_of_a_sweep_are_one_line(
    experiment: str,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sweep", experiment, f"--workdir={tmp_path / 's'}", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_experiment_without_a_sweep_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = ROOT / "experiments" / "smoke.py"
    assert main(["sweep", f"--config={smoke}", f"--workdir={tmp_path}"]) == 2
    assert "smoke.py has no function get_hyper" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sweep", "search"])
def test_experiment_files_are_registered_before_a_config_is_read(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registered: list[str] = []

    def register_file(file: str) -> None:
        registered.append(file)
        if file == "loss.py":
            raise UserError("there is no loss.py")

    module = types.ModuleType("charrnn_jax.experiment")
    monkeypatch.setattr(module, "register_file", register_file, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    files = ["--register=cell.py", "--register", "loss.py"]
    assert main([command, "--config=absent.py", *files]) == 2
    assert "there is no loss.py" in capsys.readouterr().err
    assert registered == ["cell.py", "loss.py"]


@pytest.mark.parametrize(("indices", "numbers"), [slow("1", [1]), slow("0-1", [0, 1])])
def test_an_interrupted_unit_is_not_done_until_it_is_trained_to_the_end(
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heeded_signals: None,
    indices: str,
    numbers: list[int],
) -> None:
    """Whether trained alone or as a replica; then it is the run that was never disturbed."""
    workdir = tmp_path / "sweep"
    command = ["sweep", experiment, f"--workdir={workdir}", f"--work_unit={indices}"]
    save, signals = Checkpoints.save, [signal.SIGTERM]

    def save_and_signal(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if kwargs["metadata"].step == 10 and signals:
            os.kill(os.getpid(), signals.pop())

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_signal)
        assert main(command) == 143
    units = [load_sweep(workdir)[number] for number in numbers]
    for unit in units:
        assert unit.read_status()["status"] == "waiting"
        assert not unit.is_done()
        assert 10 <= load_run(unit.workdir, checkpoint="latest").step < 40
    assert main(command) == 0
    assert all(unit.is_done() for unit in units)
    train(units[-1].config, tmp_path / "alone")
    assert_same_run(units[-1].workdir, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_killed_in_the_middle_resumes_and_gives_the_same(
    experiment: str, tmp_path: Path, heeded_signals: None, number: signal.Signals
) -> None:
    steps = "--config.train.num_steps=600"

    def command(workdir: str) -> list[str]:
        module = [sys.executable, "-m", "charrnn_jax.main"]
        return [*module, "sweep", experiment, f"--workdir={tmp_path / workdir}", steps]

    killed = subprocess.Popen(command("killed"))
    first = tmp_path / "killed" / "units" / "learning_rate=0.1,seed=0"
    while not list(first.glob("checkpoints/*0")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(number)
    assert killed.wait() in (-number, 128 + number)
    assert load_sweep(tmp_path / "killed")[0].read_status()["status"] != "done"
    subprocess.run(command("killed"), check=False)
    subprocess.run(command("whole"), check=False)
    for one, other in zip(
        load_sweep(tmp_path / "killed"), load_sweep(tmp_path / "whole"), strict=True
    ):
        assert one.read_result().curve == other.read_result().curve
        assert one.read_status()["status"] == other.read_status()["status"]
        if one.is_done():
            first, second = (load_run(unit.workdir, checkpoint="latest") for unit in (one, other))
            for x, y in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
                np.testing.assert_array_equal(x, y)


def test_the_argument_of_an_experiment_reaches_its_sweep(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = """
def get_hyper(hyper, {parameter}="fixed"):
    return hyper.fixed("data.offset", {parameter})
"""
    file, flags = tmp_path / "experiment.py", ["--dry_run", f"--workdir={tmp_path / 'sweep'}"]
    text = file.read_text()
    file.write_text(text + own.format(parameter="arg"))
    assert main(["sweep", f"{experiment}:random", *flags]) == 0
    assert "offset=random" in capsys.readouterr().out
    file.write_text(text + own.format(parameter="other"))  # which means something else
    assert main(["sweep", f"{experiment}:random", *flags]) == 0
    assert "offset=fixed" in capsys.readouterr().out


def test_an_argument_that_an_experiment_does_not_know_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--workdir={tmp_path / 'sweep'}", "--dry_run"]
    assert main(["sweep", f"--config={ROOT / 'experiments' / 'cells.py'}:secnds", *flags]) == 2
    assert "cells.py knows :seconds and :rates, not :secnds" in capsys.readouterr().err
