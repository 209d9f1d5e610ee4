"""Each process that trained a run is recorded, if what it did was kept."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import CallAt
from ml_collections import ConfigDict
from test_sweep_report import parse_tables

from charrnn_jax.main import main
from charrnn_jax.training.loop import train
from charrnn_jax.workdir.check import check_run
from charrnn_jax.workdir.sessions import describe_session, read_sessions


def fail(step: int, metrics: dict[str, object]) -> None:
    raise RuntimeError("the power is gone")


def test_a_run_records_the_processes_whose_steps_were_kept(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    command = ["/opt/bin/charrnn", "train", "--config=quick", "--config.data.path=/home/me/my text"]
    monkeypatch.setattr(sys, "argv", command)
    tiny_config.train.num_steps = 10
    with pytest.raises(RuntimeError):
        train(tiny_config, workdir, hooks=[CallAt(5, fail)])
    train(tiny_config, workdir)
    tiny_config.train.num_steps = 20
    with pytest.raises(RuntimeError):
        train(tiny_config, workdir, hooks=[CallAt(15, fail)])
    train(tiny_config, workdir)
    train(tiny_config, workdir)  # nothing is left
    sessions = list(read_sessions(workdir))
    assert [session.step for session in sessions] == [1, 11]
    assert sessions[0].command == ["charrnn", *command[1:]]
    assert sessions[0].versions["jax"] == metadata.version("jax")
    assert sessions[0].devices == "1 x cpu"
    monkeypatch.setattr(metadata, "version", lambda name: metadata.distribution("absent"))
    assert describe_session(1, num_devices=1).versions["charrnn_jax"] == "(not installed)"
    assert not [finding for finding in check_run(workdir) if finding.problem]

    assert main(["report", f"--workdir={workdir}"]) == 0
    page = (workdir / "report.html").read_text(encoding="utf-8")
    shown = parse_tables(page)[-1]
    assert [row[0] for row in shown] == ["From step", "1", "11"]
    assert shown[1][2] == "charrnn train --config=quick '--config.data.path=my text'"
    assert "/home/me" not in page
