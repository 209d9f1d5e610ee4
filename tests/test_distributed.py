"""Real processes on this machine train one model together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from helpers import assert_bitwise_equal, assert_rows_agree, rows_without_time
from ml_collections import ConfigDict

from charrnn_jax.config import to_json
from charrnn_jax.data.batches import make_batches
from charrnn_jax.main import main
from charrnn_jax.training.dispatch import calls
from charrnn_jax.training.loop import train
from charrnn_jax.workdir import checkpoints as checkpoints_lib
from charrnn_jax.workdir.run import load_run

SECONDS = 300  # the machine may be busy; a job that hangs is killed

# What the command does, but a process that was killed is missed sooner.
JOINED = """
import sys
from charrnn_jax.main import main
from charrnn_jax.processes import join_processes
coordinator, num_processes, process_id = sys.argv[1:4]
join_processes(
    coordinator,
    num_processes=int(num_processes),
    process_id=int(process_id),
    heartbeat_timeout_seconds=10,
)
sys.exit(main(sys.argv[4:]))
"""


@contextlib.contextmanager
def job(
    config: ConfigDict, workdir: Path, *, num_processes: int, local_devices: int = 1
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts the processes; none of them outlives the block."""
    experiment = workdir.with_suffix(".py")
    experiment.write_text(
        "from charrnn_jax.config import from_json\n"
        f"def get_config(arg=''): return from_json({to_json(config)!r})\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={local_devices}",
    }
    arguments = [f"--config={experiment}", f"--workdir={workdir}"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(num_processes):
            outputs = (workdir.with_suffix(f".{i}.{name}") for name in ("out", "err"))
            with contextlib.ExitStack() as stack:
                out, err = (stack.enter_context(open(file, "wb")) for file in outputs)
                command = [sys.executable, "-c", JOINED, coordinator, str(num_processes), str(i)]
                processes.append(
                    subprocess.Popen(
                        [*command, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=err
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_job(config: ConfigDict, workdir: Path, **kwargs: int) -> list[str]:
    """Runs a job to its end; returns what each process printed."""
    with job(config, workdir, **kwargs) as processes:
        for i, process in enumerate(processes):
            assert process.wait(SECONDS) == 0, workdir.with_suffix(f".{i}.err").read_text()
    return [workdir.with_suffix(f".{i}.out").read_text() for i in range(len(processes))]


def wait_for_checkpoint(workdir: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + SECONDS
    while not checkpoints_lib.steps(workdir):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tiny_config: ConfigDict, tmp_path: Path) -> None:
    """Only the first writes and prints; one process goes on with what two have saved."""
    tiny_config.data.batching = "lanes"
    tiny_config.model.dropout = 0.2
    tiny_config.train.num_epochs = 1
    tiny_config.train.averaging, tiny_config.train.patience = "ema", 5
    first, second = run_job(tiny_config, tmp_path / "two", num_processes=2)
    assert "Initial loss" in first
    assert all("[Gloo]" in line for line in second.splitlines())  # says so from C++
    train(tiny_config, tmp_path / "one")
    assert_rows_agree(tmp_path / "two", tmp_path / "one", rel=1e-4)
    tiny_config.train.num_epochs = 2
    resumed, alone = (train(tiny_config, tmp_path / name) for name in ("two", "one"))
    assert_rows_agree(tmp_path / "two", tmp_path / "one")
    assert int(resumed.step) == int(alone.step) == load_run(tmp_path / "two").step
    for name in ("one", "two"):
        assert len((tmp_path / name / "samples.jsonl").read_text().splitlines()) == 3
        assert json.loads((tmp_path / name / "config.json").read_text())["train"]["num_epochs"] == 2


@pytest.mark.slow
def test_four_processes_share_hidden_units_and_two_go_on(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """Four of two devices each, then two of one device, then four again."""
    tiny_config.model.cell = "lstm"
    for epochs, (num_processes, model_devices) in enumerate([(4, 2), (2, 1), (4, 2)], start=1):
        tiny_config.train.num_epochs = epochs
        tiny_config.train.model_devices = model_devices
        run_job(
            tiny_config,
            tmp_path / "many",
            num_processes=num_processes,
            local_devices=model_devices,
        )
    tiny_config.train.model_devices = 1
    train(tiny_config, tmp_path / "one")
    assert_rows_agree(tmp_path / "many", tmp_path / "one")


@pytest.mark.slow
def test_signal_to_one_process_stops_all_behind_one_step_and_a_killed_one_costs_little(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """In the end there is what an undisturbed job gives, bit for bit."""
    tiny_config.train.num_epochs = 15
    tiny_config.train.steps_per_call = 1
    tiny_config.train.sample_every_steps = 10_000
    tiny_config.train.checkpoint_every_steps = 21
    workdir = tmp_path / "disturbed"
    with job(tiny_config, workdir, num_processes=2) as processes:
        wait_for_checkpoint(workdir, processes)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(SECONDS) for process in processes] == [143, 143]
    assert 21 < checkpoints_lib.steps(workdir)[-1] < 315
    with job(tiny_config, workdir, num_processes=2) as processes:
        before = checkpoints_lib.steps(workdir)
        while checkpoints_lib.steps(workdir) == before:
            assert processes[1].poll() is None
            time.sleep(0.02)
        processes[1].kill()
        assert processes[0].wait(SECONDS) != 0
    assert checkpoints_lib.steps(workdir)[-1] < 315
    run_job(tiny_config, workdir, num_processes=2)
    run_job(tiny_config, tmp_path / "undisturbed", num_processes=2)
    assert rows_without_time(workdir) == rows_without_time(tmp_path / "undisturbed")
    # Read by one process; it has nothing to do.
    states = [train(tiny_config, folder) for folder in (workdir, tmp_path / "undisturbed")]
    assert_bitwise_equal(*states)


class Watched:
    """A text that remembers which characters were read."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        self.read.update(np.ravel(index).tolist())
        return self.tokens[index]


@pytest.mark.parametrize("batching", ["chunks", "lanes"])
def test_process_reads_its_own_rows_alone(batching: str) -> None:
    """Two processes of half the rows each: together they have every batch."""
    tokens = np.random.default_rng(0).integers(0, 9, 700)
    kind = {"batching": batching, "batch_size": 4, "sequence_length": 9, "seed": 0}
    whole = make_batches(tokens, **kind)
    stop = whole.steps_per_epoch
    parts, texts = [], []
    for rows in (slice(0, 2), slice(2, 4)):
        texts.append(Watched(tokens))
        batches = make_batches(texts[-1], **kind)  # type: ignore[arg-type]
        parts.append(
            list(
                calls(
                    batches,
                    start=0,
                    stop=stop,
                    num_steps=1,
                    next_stop=lambda step: stop,
                    on_device=False,
                    rows=rows,
                )
            )
        )
    for step, pair in enumerate(zip(*parts, strict=True)):
        assert all(call.stop == step + 1 for call in pair)
        for name in ("inputs", "targets"):
            joined = np.concatenate([getattr(call.where, name)[0] for call in pair])
            np.testing.assert_array_equal(joined, getattr(whole[step], name))
    own = [
        {
            int(start) + offset
            for step in range(stop)
            for start in whole.starts(step)[rows]
            for offset in range(10)
        }
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert [text.read for text in texts] == own
    assert len(own[0] & own[1]) <= (1 if batching == "lanes" else 0)  # the target of the last


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "all three, or --distributed alone"),
        (["--coordinator=a:1", "--process_id=0"], "all three, or --distributed alone"),
        (["--distributed", "--process_id=0"], "all three, or --distributed alone"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "ids from 0 to N - 1"),
        (["--coordinator=a", "--num_processes=2", "--process_id=1"], "HOST:PORT"),
        (["--num_processes=0"], "at least 1"),
    ],
)
def test_flags_of_a_job_are_all_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    arguments = ["--config=experiments/smoke.py", f"--workdir={tmp_path / 'run'}"]
    with contextlib.chdir(ROOT):
        assert main([*arguments, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
