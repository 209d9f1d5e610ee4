"""Sweeps on a real Slurm of one node, which slurm.sh starts: pytest tests/cluster -m slow -n 0"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT

from charrnn_jax.main import main
from charrnn_jax.sweeps.units import WorkUnit, load_sweep
from charrnn_jax.workdir.run import load_run

SCRIPT = Path(__file__).parent / "slurm.sh"
EXPERIMENT = """
from charrnn_jax.config import default_config


def get_config(arg=""):
    config = default_config()
    config.data.path = {text_file!r}
    config.data.batch_size = 8
    config.data.sequence_length = 20
    config.model.embedding_size = 8
    config.model.hidden_size = 16
    config.train.num_steps = 3000
    config.train.evaluate_every_steps = 500
    config.train.sample_every_steps = 500
    config.train.checkpoint_every_steps = 500
    config.train.log_every_steps = 50
    config.sample.prompt = "The "
    config.sample.num_chars = 4
    return config


def get_hyper(hyper):
    return hyper.product(
        [hyper.sweep("model.cell", ["rnn", "gru"]), hyper.sweep("seed", range(4))]
    )
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """A Slurm that commands use until the session ends."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("one Slurm cannot serve several test processes: -n 0")
    started = subprocess.run([SCRIPT, "start"], capture_output=True, text=True)
    if started.returncode == 77:
        pytest.skip(started.stderr.strip().splitlines()[-1])
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip())
        patch.setenv("PYTHONPATH", str(ROOT))
        yield
    subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture(scope="session")
def experiment(text_file: Path) -> Path:
    """Eight units of a few seconds each."""
    file = text_file.with_name("experiment.py")
    file.write_text(EXPERIMENT.format(text_file=str(text_file)), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def undisturbed(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> list[WorkUnit]:
    """The units, trained on this machine."""
    workdir = tmp_path_factory.mktemp("local") / "sweep"
    sweep(experiment, workdir, "--workers=4")
    return load_sweep(workdir)


@contextlib.contextmanager
def launched(experiment: Path, workdir: Path, *flags: str) -> Iterator[subprocess.Popen]:
    """The command that launches the sweep, while it runs."""
    command = [sys.executable, "-m", "charrnn_jax.main", "sweep"]
    files = [f"--config={experiment}", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # Slurm's tasks may use other cores than workers here, and products would be summed otherwise.
    flag = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "XLA_FLAGS": flag.strip()}
    arguments = [*command, *files, *flags]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen, *, returncode: int) -> str:
    """Returns what the command printed, once it has ended as it should."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == returncode, output
    return output


def sweep(experiment: Path, workdir: Path, *flags: str, returncode: int = 0) -> str:
    """Runs the command."""
    with launched(experiment, workdir, *flags) as process:
        return finish(process, returncode=returncode)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1800):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within three minutes")


def is_in_the_middle(workdir: Path, name: str) -> bool:
    file = workdir / "units" / name / "metrics.jsonl"
    return file.is_file() and len(file.read_text().splitlines()) > 5


def tasks(workdir: Path) -> dict[str, list[str]]:
    """{"12_0": names of its units}"""
    saved = json.loads((workdir / "slurm" / "tasks.json").read_text())
    return {task: list(names.values()) for task, names in saved.items()}


def task_of(workdir: Path, name: str) -> str:
    return next(task for task, names in tasks(workdir).items() if name in names)


def assert_same(workdir: Path, undisturbed: list[WorkUnit]) -> None:
    """All units are done, with the losses and parameters of the undisturbed ones, bit for bit."""
    for unit, other in zip(load_sweep(workdir), undisturbed, strict=True):
        result, expected = unit.read_result(), other.read_result()
        assert (result.name, result.status, result.curve, result.loss) == (
            expected.name,
            "done",
            expected.curve,
            expected.loss,
        )
        params, other_params = (load_run(u.workdir).params for u in (unit, other))
        jax.tree.map(np.testing.assert_array_equal, params, other_params)


@pytest.mark.slow
def test_sweep_in_slurm_equals_the_local_one(
    slurm: None, experiment: Path, undisturbed: list[WorkUnit], tmp_path: Path
) -> None:
    workdir = tmp_path / "sweep"
    resources = ("--time=00:30:00", "--memory=1G", "--cpus_per_task=1", "--gpus_per_task=1")
    flags = ("--launcher=slurm", "--workers=4", "--partition=main", "--sbatch=comment=hello")
    output = sweep(experiment, workdir, *flags, *resources)
    assert "8 of 8 done" in output
    assert_same(workdir, undisturbed)
    assert len(tasks(workdir)) == 4
    job = subprocess.run(["scontrol", "show", "job"], capture_output=True, text=True).stdout
    assert all(text in job for text in ("Comment=hello", "TimeLimit=00:30:00", "gres:gpu:1"))


@pytest.mark.slow
def test_requeued_tasks_go_on_and_cancelled_ones_can_be_retried(
    slurm: None, experiment: Path, undisturbed: list[WorkUnit], tmp_path: Path
) -> None:
    workdir = tmp_path / "sweep"
    requeued, cancelled = "cell=rnn,seed=0", "cell=rnn,seed=1"
    with launched(experiment, workdir, "--launcher=slurm", "--workers=4") as command:
        wait_until(lambda: all(is_in_the_middle(workdir, name) for name in (requeued, cancelled)))
        subprocess.run(["scontrol", "requeue", task_of(workdir, requeued)], check=True)
        subprocess.run(["scancel", task_of(workdir, cancelled)], check=True)
        output = finish(command, returncode=1)

    lost = tasks(workdir)[task_of(workdir, cancelled)]
    assert f"{8 - len(lost)} of 8 done, {len(lost)} failed" in output
    assert "Resuming from step" in (workdir / "logs" / "0000.log").read_text()
    units = {unit.name: unit for unit in load_sweep(workdir)}
    for name in lost:
        assert "CANCELLED" in units[name].read_status()["message"]
        assert str(workdir / "logs" / "0001.log") in units[name].read_status()["message"]

    sweep(experiment, workdir, "--launcher=slurm", "--retry_failed")
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_preempted_tasks_go_on_by_themselves(
    slurm: None, experiment: Path, undisturbed: list[WorkUnit], tmp_path: Path
) -> None:
    workdir = tmp_path / "sweep"
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"]
    with launched(experiment, workdir, "--launcher=slurm", "--workers=4") as command:
        wait_until(lambda: is_in_the_middle(workdir, "cell=rnn,seed=0"))
        subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
        finish(command, returncode=0)
    assert "Resuming from step" in (workdir / "logs" / "0000.log").read_text()
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_command_attaches_again_to_what_slurm_has(
    slurm: None,
    experiment: Path,
    undisturbed: list[WorkUnit],
    tmp_path: Path,
    heeded_signals: None,
) -> None:
    workdir = tmp_path / "sweep"
    with launched(experiment, workdir, "--launcher=slurm", "--workers=4") as command:
        wait_until(lambda: is_in_the_middle(workdir, "cell=rnn,seed=0"))
        submitted = tasks(workdir)
        command.send_signal(signal.SIGINT)
        output = finish(command, returncode=128 + signal.SIGINT)
    assert f"scancel {next(iter(submitted)).partition('_')[0]}" in output

    assert "give --launcher=slurm" in sweep(experiment, workdir, returncode=2)

    moved = experiment.with_name("moved.py")
    text = experiment.read_text(encoding="utf-8")
    moved.write_text(text.replace('["rnn", "gru"]', '["gru", "rnn"]'), encoding="utf-8")
    output = sweep(moved, workdir, "--launcher=slurm", returncode=2)
    assert "which get_hyper has moved" in output

    assert "they continue" in sweep(experiment, workdir, "--launcher=slurm")
    assert tasks(workdir) == submitted
    assert not any("Resuming" in log.read_text() for log in (workdir / "logs").iterdir())
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_what_sbatch_says_is_one_line(slurm: None, experiment: Path, tmp_path: Path) -> None:
    flags = ("--launcher=slurm", "--partition=nowhere")
    output = sweep(experiment, tmp_path / "sweep", *flags, returncode=2)
    assert output.splitlines()[-1].startswith("charrnn: error: Slurm refused the job: ")
    assert "Invalid partition" in output.splitlines()[-1]


def test_flags_of_slurm_need_its_launcher(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", f"--config={experiment}", "--dry_run", "--memory=8G"]) == 2
    assert "give --launcher=slurm" in capsys.readouterr().err


def test_without_slurm_the_error_names_the_way_out(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", f"--config={experiment}", "--dry_run", "--launcher=slurm"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(command) == 2
    assert "on a login node" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(command) == 2
    assert "pip install 'charrnn_jax[slurm]'" in capsys.readouterr().err
