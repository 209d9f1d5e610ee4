"""Trackers: what they get of a run, and that they cannot harm it."""

import json
import re
import shutil
import struct
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_run, is_measured, signal_at, slow
from ml_collections import ConfigDict

import charrnn_jax
from charrnn_jax.errors import Interrupted
from charrnn_jax.training import tracking

Numbers = dict[tuple[str, int], float]


def written_numbers(workdir: Path) -> Numbers:
    """{(name, step): number} of metrics.jsonl; of two rows of a step, the later."""
    return {
        (name, row["step"]): value
        for row in charrnn_jax.read_json_lines(workdir / "metrics.jsonl")
        for name, value in row.items()
        if name != "step" and not isinstance(value, str | None)
    }


def written_samples(workdir: Path) -> list[tuple[int, str]]:
    rows = charrnn_jax.read_json_lines(workdir / "samples.jsonl")
    return [(row["step"], row["prompt"] + row["text"]) for row in rows]


def read_events(folder: Path) -> list[Any]:
    """The events of all files, less those that TensorBoard drops: the ones before a START that
    have its step or a later one."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    events: list[Any] = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])  # then 4 bytes of checksum, and at the end
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                events = [old for old in events if old.step < event.step]
            events.append(event)
            content = content[16 + length :]
    return events


def as_texts(events: list[Any], prefix: str) -> list[tuple[int, str]]:
    found = [
        (event.step, value.tensor.string_val[0].decode())
        for event in events
        for value in event.summary.value
        if value.tag.startswith(prefix) and value.metadata.plugin_data.plugin_name == "text"
    ]
    return [
        (step, re.sub("^    ", "", text, flags=re.M).removesuffix("\n")) for step, text in found
    ]


def assert_tensorboard_has_the_run(workdir: Path) -> None:
    """Every number and sample once, and nothing else."""
    events = read_events(workdir / "tensorboard")
    values = [(e.step, v) for e in events for v in e.summary.value if v.HasField("simple_value")]
    counts = Counter((value.tag, step) for step, value in values)
    assert set(counts.values()) == {1}
    expected = written_numbers(workdir)
    assert counts.keys() == expected.keys()
    for step, value in values:
        assert value.simple_value == pytest.approx(expected[value.tag, step], rel=1e-6)
    assert as_texts(events, "sample/") == written_samples(workdir)


def test_tensorboard_has_every_row_once_after_a_signal_and_a_lost_checkpoint(
    tiny_config: ConfigDict, tmp_path: Path, heeded_signals: None
) -> None:
    """A signal after step 30 saves rows that no hook call has announced; without the last
    checkpoint, the run goes back to step 21, and the tracker with it."""
    pytest.importorskip("tensorboardX")
    tiny_config.train.hooks = "tensorboard"
    with pytest.raises(Interrupted):
        charrnn_jax.train(tiny_config, tmp_path, hooks=[signal_at(30)])
    assert_tensorboard_has_the_run(tmp_path)
    charrnn_jax.train(tiny_config, tmp_path)
    assert_tensorboard_has_the_run(tmp_path)
    for step in (30, 42):
        shutil.rmtree(tmp_path / "checkpoints" / str(step), ignore_errors=True)
    tiny_config.train.log_every_steps = 5
    charrnn_jax.train(tiny_config, tmp_path)
    assert_tensorboard_has_the_run(tmp_path)
    (*_, (_, config)) = as_texts(read_events(tmp_path / "tensorboard"), "config")
    assert json.loads(config)["train"]["log_every_steps"] == 5


def test_a_tracker_that_is_switched_on_later_gets_the_whole_run(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX")
    charrnn_jax.train(tiny_config, tmp_path)
    tiny_config.train.hooks = "tensorboard"
    charrnn_jax.train(tiny_config, tmp_path)
    assert_tensorboard_has_the_run(tmp_path)


WANDB = """
import json, os, sys, time

def note(**what):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps(what) + "\\n")

def init(**settings):
    note(init=settings)
    return Run()

def Table(columns, data):
    return {"table": data}

def Html(file, inject):
    return {"page": open(file).read()}

class Run:
    def log(self, content, step):
        note(log=content, step=step)
        FAULT

    def finish(self, exit_code):
        note(finish=exit_code)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a module that stands in for wandb; returns what it was called with."""
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))

    def make(fault: str = "pass") -> None:
        (tmp_path / "modules").mkdir()
        source = textwrap.dedent(WANDB).replace("FAULT", fault)
        (tmp_path / "modules" / "wandb.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "modules")

    def notes() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]

    make.notes = notes  # type: ignore[attr-defined]
    return make


def test_wandb_gets_every_step_once_in_order_and_the_report_at_the_end(
    tiny_config: ConfigDict, tmp_path: Path, heeded_signals: None, stand_in: Any
) -> None:
    """It cannot go back: steps that it has had are not sent again."""
    stand_in()
    tiny_config.train.hooks = "wandb"
    workdir = tmp_path / "run"
    with pytest.raises(Interrupted):
        charrnn_jax.train(tiny_config, workdir, hooks=[signal_at(30)])
    (workdir / "report.html").write_text("<title>A run</title>")
    charrnn_jax.train(tiny_config, workdir)
    shutil.rmtree(workdir / "checkpoints" / "42")
    charrnn_jax.train(tiny_config, workdir)
    notes = stand_in.notes()
    starts = [note["init"] for note in notes if "init" in note]
    assert len({start["id"] for start in starts}) == 1
    assert [start["resume"] for start in starts] == ["allow"] * 3
    assert starts[0]["name"] == "run"
    assert starts[0]["config"] == tiny_config.to_dict()
    assert [note["finish"] for note in notes if "finish" in note] == [0, 0, 0]
    logs = [(note["step"], note["log"]) for note in notes if "log" in note]
    assert [content for _, content in logs if "report" in content] == [
        {"report": {"page": "<title>A run</title>"}}
    ] * 2
    rows = [(step, content) for step, content in logs if "report" not in content]
    tables = [(step, row) for step, c in rows for row in c.pop("samples", {"table": []})["table"]]
    assert [(step, "".join(row)) for step, row in tables] == written_samples(workdir)
    assert [step for step, _ in rows] == sorted({step for step, _ in rows})
    sent = {(name, step): value for step, content in rows for name, value in content.items()}
    expected = written_numbers(workdir)
    assert sent.keys() == expected.keys()
    assert all(sent[key] == expected[key] for key in sent if not is_measured(key[0]))


@pytest.mark.slow
def test_a_run_that_starts_anew_is_another_one_for_wandb(
    tiny_config: ConfigDict, tmp_path: Path, stand_in: Any
) -> None:
    stand_in()
    tiny_config.train.hooks, tiny_config.train.num_steps = "wandb", 7
    for _ in range(2):
        charrnn_jax.train(tiny_config, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    notes = stand_in.notes()
    assert len({note["init"]["id"] for note in notes if "init" in note}) == 2
    assert [note["step"] for note in notes if "log" in note] == [0, 7, 0, 7]


@pytest.mark.parametrize(
    ("fault", "seconds", "reason"),
    [
        ("raise ConnectionError('the network is down')", 30, "ConnectionError: the network is"),
        slow("sys.exit('I end this')", 30, "SystemExit: I end this"),
        slow("os.kill(os.getpid(), 9)", 30, "exit code -9"),
        ("time.sleep(20)", 0.2, "it needs more than 0.2 s to end, and is left to itself"),
    ],
)
def test_a_tracker_that_fails_is_one_warning_and_leaves_the_run_as_it_is(
    tiny_config: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: Any,
    fault: str,
    seconds: float,
    reason: str,
) -> None:
    monkeypatch.setattr(tracking, "_LAST_SECONDS", seconds)
    stand_in(fault)
    charrnn_jax.train(tiny_config, tmp_path / "alone")
    tiny_config.train.hooks = "wandb"
    start = time.perf_counter()
    with pytest.warns(UserWarning, match="does not record the whole run") as caught:
        charrnn_jax.train(tiny_config, tmp_path / "run")
    assert time.perf_counter() - start < 20
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert_same_run(tmp_path / "run", tmp_path / "alone")
    for process in tracking._LEFT:
        process.kill()
        process.wait()


def test_a_tracker_without_a_place_to_write_is_one_warning(
    tiny_config: ConfigDict, tmp_path: Path, stand_in: Any
) -> None:
    stand_in()
    tiny_config.train.hooks = "wandb"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("in the way")
    with pytest.warns(UserWarning, match=r"wandb does not record.*File exists") as caught:
        charrnn_jax.train(tiny_config, tmp_path / "run")
    assert len(caught) == 1


def test_a_missing_package_is_a_warning_that_names_the_extra(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a folder in the way has its name, such as the one that the package makes."""
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    tiny_config.train.hooks, tiny_config.train.num_steps = "tensorboard,wandb", 3
    with pytest.warns(UserWarning, match="is not installed") as caught:
        charrnn_jax.train(tiny_config, tmp_path / "run")
    said = [str(warning.message) for warning in caught]
    assert ['pip install "charrnn_jax[tensorboard]"' in text for text in said] == [True, False]
    assert ['pip install "charrnn_jax[wandb]"' in text for text in said] == [False, True]


def test_a_hook_may_know_the_workdir_and_when_training_begins_and_ends(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    calls: list[Any] = []

    class Bracket:
        every_steps = 21

        def __init__(self, workdir: Path):
            calls.append(workdir)

        def __enter__(self) -> None:
            calls.append("enter")

        def __call__(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
            calls.append(step)
            if step == 42:
                raise RuntimeError("enough")

        def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
            calls.append(str(error))

    charrnn_jax.register_hook("bracket", lambda config, workdir: Bracket(workdir))
    tiny_config.train.hooks = "bracket"
    with pytest.raises(RuntimeError, match="enough"):
        charrnn_jax.train(tiny_config, tmp_path)
    assert calls == [tmp_path, "enter", 21, 42, "enough"]
