"""The benchmark's own command at tiny sizes, with the peers that need nothing but our libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import E, H, V

from benchmarks.scaling import latency_and_rate
from benchmarks.workloads import WORKLOADS
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.training.dispatch import count_step_weights


def test_flops_of_a_training_step_are_three_times_those_of_its_products_forward() -> None:
    step = WORKLOADS["T1"]
    forward = 2 * 64 * 100 * 1024 * (3 * 1024 + 66)
    assert step.flops == 3 * forward


def test_weights_of_a_step_are_all_but_those_that_project_the_table() -> None:
    recurrent, inputs, readout = 3 * H * H, 3 * H * H, H * V
    assert count_step_weights(CharRNN(V, E, H)) == recurrent + readout
    assert (
        count_step_weights(CharRNN(V, E, H, num_layers=3)) == 3 * recurrent + 2 * inputs + readout
    )


def run_benchmarks(output: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--rounds=1", "--seconds=0"]
    command += ["--min_runs=1", f"--output={output}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_benchmarks_write_a_row_for_every_peer_that_can_do_a_workload(tmp_path: Path) -> None:
    run_benchmarks(tmp_path, "--only=T3,S1,I1", "--peers=fused,fused_16")
    workloads = json.loads((tmp_path / "benchmarks.json").read_text())["workloads"]
    peers = {name: set(entry["runs"]) for name, entry in workloads.items()}
    assert peers == {
        "T3": {"fused", "fused_16", "floor"},
        "S1": {"fused", "floor"},
        "I1": {"fused"},
    }
    for entry in workloads.values():
        assert all(run["seconds"][0] > 0 for runs in entry["runs"].values() for run in runs)
    table = (tmp_path / "benchmarks.md").read_text()
    assert all(f"**{name}**" in table for name in peers)
    assert "failed" not in table


@pytest.mark.slow
def test_curves_have_a_point_for_every_size(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run_benchmarks(tmp_path, "--curves", "--peers=fused")
    curves = json.loads((tmp_path / "curves.json").read_text())["curves"]
    points = curves["hidden_size"]["fused"]
    assert [point["x"] for point in points] == [128, 256, 512, 1024, 2048]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_time_of_all_reduces_is_taken_apart_into_latency_and_rate() -> None:
    points = [{"bytes": size, "seconds": 1e-4 + size / 2e9} for size in (1e3, 1e5, 1e7, 1e9)]
    assert latency_and_rate(points) == pytest.approx((1e-4, 2e9))


@pytest.mark.slow
def test_scaling_has_a_point_for_every_number_of_processes_and_every_size(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "benchmarks.scaling", "--tiny", "--seconds=0"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "scaling.json").read_text())
    for entry in results["steps"].values():
        assert entry["points"][0]["x"] == 1
        assert all(point["seconds"] > 0 for point in entry["points"])
    assert [point["x"] for point in results["sizes"]["length"]] == [16, 64, 256, 1024]
    assert all(point["seconds"] > 0 for point in results["all_reduce"]["points"])
    assert "All-reduce between two processes" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_an_unknown_workload_is_named_with_those_there_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only=T9", f"--output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no 'T9'; there are T1,T2" in done.stderr
