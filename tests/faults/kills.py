"""Kills real commands at random and at chosen moments, resumes them, and compares their results.

A scenario is a command that trains. It is first run undisturbed. Then it is started, killed and
started again until it ends, and everything that it leaves must be the same, less times.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from charrnn_jax.workdir.checkpoints import find_damage, read_metadata, steps
from charrnn_jax.workdir.json_lines import read_json_lines

ROOT = Path(__file__).parent.parent.parent
SECONDS = 240  # the longest that a command may take
EXPERIMENT = """
from charrnn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.corpus = "python-stdlib"
    config.data.max_chars = 20_000
    config.data.batching = "lanes"
    config.data.batch_size = 8
    config.data.sequence_length = 20
    config.model.embedding_size = 8
    config.model.hidden_size = 16
    config.model.dropout = 0.1
    config.optimizer.schedule = "cosine"
    config.train.num_steps = 600
    config.train.log_every_steps = 7
    config.train.evaluate_every_steps = 100
    config.train.sample_every_steps = 100
    config.train.checkpoint_every_steps = 15
    config.train.steps_per_call = 5
    config.sample.prompt = ""
    config.sample.num_chars = 20
    return config


def get_hyper(hyper):
    return hyper.product(
        [hyper.sweep("model.cell", ["gru", "rnn"]), hyper.sweep("seed", [0, 1])]
    )


def get_search(space):
    return {"optimizer.learning_rate": space.loguniform(1e-4, 1e-1)}
"""


@dataclass(frozen=True)
class Scenario:
    """A way to train.

    Attributes:
      name: name of the scenario.
      arguments: arguments of the command; --config and --workdir are added.
      num_processes: number of processes that train one model.
    """

    name: str
    arguments: tuple[str, ...] = ()
    num_processes: int = 1

    def start(self, workdir: Path) -> list[subprocess.Popen[bytes]]:
        """Starts the command, whose output is added to `output.txt` beside the workdir."""
        experiment = workdir.parent / "experiment.py"
        experiment.write_text(EXPERIMENT)
        command = [sys.executable, "-m", "charrnn_jax.main", *self.arguments]
        command += [f"--config={experiment}", f"--workdir={workdir}"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        processes = []
        for index in range(self.num_processes):
            joins = [coordinator, f"--num_processes={self.num_processes}", f"--process_id={index}"]
            with open(workdir.parent / "output.txt", "ab") as output:
                processes.append(
                    subprocess.Popen(
                        [*command, *(joins if self.num_processes > 1 else [])],
                        cwd=ROOT,
                        env={**os.environ, "PYTHONPATH": str(ROOT)},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                    )
                )
        return processes


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("train", ("train",)),
        Scenario("sweep", ("sweep", "--workers=2", "--retry_failed")),
        Scenario("search", ("search", "--workers=1", "--num_trials=3")),
        Scenario("two processes", ("train",), num_processes=2),
    )
}

# What can be seen of a moment in a workdir, by name.
MOMENTS: dict[str, Sequence[str]] = {
    "inside a save": ("checkpoints/*.orbax-checkpoint-tmp*",),
    "between a manifest and its renaming": ("checkpoints/*.orbax-checkpoint-tmp*/sha256.json",),
    "inside a deletion": ("checkpoints/*.deleted",),
    "while rows are rewritten": (".metrics.jsonl.*.partial", ".samples.jsonl.*.partial"),
    "while the config is written": (".config.json.*.partial",),
    "at the first checkpoint": ("checkpoints/15",),
    "at the last step": ("checkpoints/600*",),
}


@dataclass
class Result:
    """What a round did.

    Attributes:
      kills: number of signals sent.
      codes: exit codes of the commands that were killed.
      problems: what is wrong; empty: nothing.
    """

    kills: int = 0
    codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def fingerprint(workdir: Path) -> str:
    """Returns a hash of everything that a command has left, less times, for every run in it."""
    digest = hashlib.sha256()
    folders = [folder.parent for folder in sorted(workdir.rglob("metrics.jsonl"))]
    assert folders, f"no run in {workdir}"
    for folder in folders:
        for name in ("metrics.jsonl", "samples.jsonl"):
            for row in read_json_lines(folder / name):
                kept = {
                    key: value
                    for key, value in row.items()
                    if "second" not in key and "memory" not in key
                }
                digest.update(json.dumps(kept).encode())
        digest.update((folder / "config.json").read_bytes())
        last = steps(folder)[-1]
        assert not find_damage(folder, last)
        metadata = read_metadata(folder, last).to_dict()
        recorder = metadata.pop("recorder")
        metadata["rows"] = {
            name: held["num_rows"]
            for name, held in metadata["rows"].items()
            if name != "sessions.jsonl"  # every process that trained the run has a row there
        }
        nats = [recorder[name]["nats"] for name in ("window", "epoch")]
        digest.update(json.dumps([metadata, nats], default=str).encode())
        for item in ("params", "training"):
            for leaf in jax.tree.leaves(_read_arrays(folder, last, item)):
                digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _read_arrays(workdir: Path, step: int, item: str) -> Any:
    """Returns the arrays of a checkpoint, whatever devices and processes had them."""
    place = workdir.resolve() / "checkpoints" / str(step) / item
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(place)
            tree = getattr(metadata, "item_metadata", metadata)
            tree = getattr(tree, "tree", tree)
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            return checkpointer.restore(place, restore_args=jax.tree.map(lambda _: as_numpy, tree))


def run_undisturbed(scenario: Scenario, folder: Path) -> tuple[str, float]:
    """Runs a command to its end; returns its fingerprint and its seconds."""
    folder.mkdir(parents=True)
    start = time.monotonic()
    processes = scenario.start(folder / "run")
    codes = [process.wait(SECONDS) for process in processes]
    assert not any(codes), (folder / "output.txt").read_text()
    return fingerprint(folder / "run"), time.monotonic() - start


def run_killed(
    scenario: Scenario,
    folder: Path,
    *,
    expected: str,
    seconds: float,
    rng: random.Random,
    number: int = signal.SIGKILL,
    moment: str = "",
    most_kills: int = 3,
    victim: str = "launcher",
) -> Result:
    """Kills a command up to `most_kills` times, lets it end, and compares.

    Args:
      scenario: the command.
      folder: folder for its files, which must not exist.
      expected: fingerprint of an undisturbed run.
      seconds: about how long an undisturbed run takes.
      rng: source of the moments.
      number: signal to send.
      moment: name of a moment in `MOMENTS`; "": a random time.
      most_kills: number of times that the command is killed.
      victim: "launcher" (the process that was started) or "worker" (one that it started).
    """
    folder.mkdir(parents=True)
    workdir, result = folder / "run", Result()
    for _ in range(most_kills):
        before = {path: steps(path.parent) for path in workdir.rglob("checkpoints")}
        said_before = len(_read(folder / "output.txt"))
        processes = scenario.start(workdir)
        with _none_left(processes):
            wait = rng.uniform(0, 0.6 * seconds)  # a machine may be slower at first
            _wait_until(processes, wait, workdir, moment=moment)
            if processes[0].poll() is not None:
                if result.kills:
                    break
                # It was faster than the undisturbed run: once more, and sooner.
                for process in processes:
                    process.wait(SECONDS)
                shutil.rmtree(workdir)
                seconds /= 2
                continue
            target = rng.choice(processes).pid
            if victim == "worker":
                target = rng.choice([*_children(target), target])
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
            result.kills += 1
            if number == signal.SIGKILL and len(processes) > 1:
                time.sleep(rng.uniform(0, 1))  # the other would wait for its heartbeat
                for process in processes:
                    process.kill()
            try:
                codes = [process.wait(SECONDS) for process in processes]
            except subprocess.TimeoutExpired:
                result.problems.append(f"it hangs after signal {number}")
                break
            if scenario.arguments[0] in ("sweep", "search"):
                _wait_for_workers(workdir)
            result.codes += codes
            allowed = {0, 128 + number} if number != signal.SIGKILL else {0, -number}
            said = _read(folder / "output.txt")[said_before:].rstrip()
            if not said or said.endswith("KeyboardInterrupt"):  # before the program's first line
                allowed.add(-number)  # which a shell shows as 128 + number
            # Another process of a job that has lost one may abort first.
            is_alone = victim == "launcher" and len(processes) == 1
            if is_alone and not set(codes) <= allowed:
                result.problems.append(f"exit codes {codes} after signal {number}")
        for path, saved in before.items():
            if saved and max(steps(path.parent), default=-1) < max(saved):
                result.problems.append(f"{path} had {saved}, and has {steps(path.parent)}")
    processes = scenario.start(workdir)
    with _none_left(processes):
        codes = [process.wait(SECONDS) for process in processes]
    output = (folder / "output.txt").read_text(errors="replace")
    if any(codes):
        result.problems.append(f"ends with {codes}: {output[-2000:]}")
    elif fingerprint(workdir) != expected:
        result.problems.append("it is another run than the undisturbed one")
    logs = [log.read_text(errors="replace") for log in workdir.rglob("*.log")]
    for text in (output, *logs):
        # Python itself prints one if Ctrl-C comes before the first line of the program.
        is_ours = "Traceback" in text and "charrnn_jax/" in text and scenario.num_processes == 1
        if is_ours or "damaged" in text:
            result.problems.append(text[-2000:])
    announced = [int(n.replace(",", "")) for n in re.findall(r"Saved step ([\d,]+)", output)]
    resumed = [int(n.replace(",", "")) for n in re.findall(r"Resuming from step ([\d,]+)", output)]
    if (
        number != signal.SIGKILL
        and scenario.name == "train"
        and not set(announced)
        <= {
            *resumed,
            *steps(workdir),
        }
    ):
        result.problems.append(f"saved {announced}, resumed from {resumed}")
    return result


def _read(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


@contextlib.contextmanager
def _none_left(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_until(
    processes: Sequence[subprocess.Popen[bytes]], seconds: float, workdir: Path, *, moment: str
) -> None:
    deadline = time.monotonic() + (SECONDS if moment else seconds)
    while processes[0].poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # renamed while it was looked at
            if moment and any(any(workdir.glob(pattern)) for pattern in MOMENTS[moment]):
                return
        time.sleep(0.0005 if moment else 0.01)


def _children(process: int) -> list[int]:
    """Returns the processes that a process has started (Linux)."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def _wait_for_workers(workdir: Path) -> None:
    """Waits for workers that outlive their launcher: they save and end."""

    def commands() -> Iterator[str]:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                yield file.read_text(errors="replace")

    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and any(str(workdir) in command for command in commands()):
        time.sleep(0.05)


def campaign(
    folder: Path,
    *,
    rounds: dict[str, int],
    number: int,
    seed: int,
    report: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Runs many rounds, and reports each that is not as it should be.

    Args:
      folder: folder for the files.
      rounds: number of rounds of each scenario, by name.
      number: signal to send.
      seed: seed of the moments.
      report: called with a line for each round.

    Returns:
      Numbers of rounds, signals and problems.
    """
    for stops in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stops) == signal.SIG_IGN:  # by nohup or a shell, and so in children
            signal.signal(stops, signal.SIG_DFL)
    rng = random.Random(seed)
    total: dict[str, Any] = {"rounds": 0, "kills": 0, "problems": []}
    for name, count in rounds.items():
        scenario = SCENARIOS[name]
        place = folder / f"{name.replace(' ', '_')}-{number}"
        expected, seconds = run_undisturbed(scenario, place / "undisturbed")
        for index in range(count):
            moment = rng.choice(["", "", *MOMENTS]) if name == "train" else ""
            victim = rng.choice(["launcher", "worker"]) if name == "sweep" else "launcher"
            result = run_killed(
                scenario,
                place / str(index),
                expected=expected,
                seconds=seconds,
                rng=rng,
                number=number,
                moment=moment,
                victim=victim,
            )
            total["rounds"] += 1
            total["kills"] += result.kills
            total["problems"] += result.problems
            report(
                f"{name} {index} {signal.Signals(number).name} {victim} {moment or 'at random'}: "
                f"{result.kills} kills, codes {result.codes} "
                + (f"PROBLEMS {result.problems}" if result.problems else "same")
            )
    return total
