"""Copies the rows of a run to a tracker while it trains: the process that `tracking` starts.

    python -m charrnn_jax.training.trackers NAME WORKDIR BYTES BYTES

The numbers are the sizes of metrics.jsonl and samples.jsonl when the run was started or resumed. On
standard input come the steps of which all rows are written, a line each, and at last "done" or
"failed". Rows are also looked for in between.

<workdir>/NAME/progress.json says how far the tracker is. A resumed run drops the rows after its
checkpoint and writes them again. The tracker drops them as well; one that cannot does not get them
twice. A tracker that is new to a run gets all rows from the beginning.

This module imports neither JAX nor, before a tracker is opened, its package.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from charrnn_jax.errors import UserError, shortened
from charrnn_jax.files import replacing
from charrnn_jax.reading import parse_json, read_json

FILES = ("metrics.jsonl", "samples.jsonl")
_EVERY_SECONDS = 5.0  # between looks for new rows
_MOST_SECONDS_AFTER_RUN = 600  # that this process may live on after the run has ended


@dataclass
class TrackedStep:
    """What a run has written about a step.

    Attributes:
      step: number of steps done.
      numbers: all finite numbers, named as in metrics.jsonl.
      samples: rows of samples.jsonl: "prompt", "text", "temperature".
    """

    step: int
    numbers: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Position:
    """How far a tracker is.

    Attributes:
      run_id: name of the run for the tracker; it stays the same when the run is resumed.
      last_step: last step that the tracker has, and keeps; -1: none.
    """

    run_id: str
    last_step: int


class Tracker(Protocol):
    """Interface of a tracker.

    Attributes:
      can_go_back: whether `open` deletes the steps after `last_step` that were logged before.
    """

    can_go_back: bool

    def open(self, workdir: Path, *, config: dict[str, Any], position: Position) -> None:
        """Called first, with the workdir and the config of the run, and what the tracker has."""

    def log(self, tracked: TrackedStep) -> None:
        """Called with each step after `last_step`, in their order."""

    def flush(self) -> None:
        """Called after some steps: makes sure that they are not lost."""

    def close(self, report: Path | None, *, failed: bool) -> None:
        """Called last, with the report of the run if it has one, and whether training failed."""


class TensorBoard:
    """Writes event files to <workdir>/tensorboard, by tensorboardX.

    Its `EventsWriter` is used, since a `SummaryWriter` writes in another thread, where a full disk
    would go unnoticed.
    """

    can_go_back = True

    def open(self, workdir: Path, *, config: dict[str, Any], position: Position) -> None:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._events = summary, event_pb2
        # TensorBoard reads the files in the order of their names; a second may have several.
        self._writer = event_file_writer.EventsWriter(
            str(workdir / "tensorboard" / "events"), f".{time.time_ns()}"
        )
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(position.last_step + 1, session_log=start)  # drops all from this step on
        self._write_text(position.last_step + 1, "config", json.dumps(config, indent=2))

    def log(self, tracked: TrackedStep) -> None:
        for name, number in tracked.numbers.items():
            self._write(tracked.step, summary=self._summary.scalar(name, number))
        for index, row in enumerate(tracked.samples):
            self._write_text(tracked.step, f"sample/{index}", f"{row['prompt']}{row['text']}")

    def _write_text(self, step: int, name: str, text: str) -> None:
        code = "".join(f"    {line}\n" for line in text.split("\n"))  # in Markdown
        self._write(step, summary=self._summary.text(name, code))

    def _write(self, step: int, **content: Any) -> None:
        event = self._events.Event(step=step, wall_time=time.time(), **content)
        self._writer.write_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, report: Path | None, *, failed: bool) -> None:
        """Closes the file. TensorBoard cannot show a page, so the report is not in it."""
        self._writer.close()


class WeightsAndBiases:
    """Writes to a run of Weights & Biases; with WANDB_MODE=offline to <workdir>/wandb.

    Other environment variables of the package work as well, such as WANDB_PROJECT.
    """

    can_go_back = False

    def open(self, workdir: Path, *, config: dict[str, Any], position: Position) -> None:
        import wandb

        self._wandb, self._last_step = wandb, max(position.last_step, 0)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "charrnn_jax"),
            name=workdir.resolve().name,
            id=position.run_id,
            resume="allow",
            dir=str(workdir),
            config=config,
        )

    def log(self, tracked: TrackedStep) -> None:
        self._last_step = tracked.step
        content: dict[str, Any] = dict(tracked.numbers)
        if tracked.samples:
            data = [[row["prompt"], row["text"]] for row in tracked.samples]
            content["samples"] = self._wandb.Table(columns=["prompt", "text"], data=data)
        self._run.log(content, step=tracked.step)

    def flush(self) -> None:
        """Does nothing: the package has a process of its own, which writes at once."""

    def close(self, report: Path | None, *, failed: bool) -> None:
        if report:
            page = self._wandb.Html(str(report), inject=False)
            self._run.log({"report": page}, step=self._last_step)
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class _Steps:
    """The steps of a run whose rows have not been passed on."""

    def __init__(self, workdir: Path):
        self._files = [workdir / name for name in FILES]
        self._num_read = [0, 0]  # bytes
        self._waiting: dict[int, TrackedStep] = {}

    def look(self, *, most: Sequence[int] = (-1, -1)) -> int:
        """Reads new rows, of each file at most so many bytes; returns the newest step; -1: none.

        Metrics are read first: once they have a step, all samples of earlier ones are written.
        """
        for row in self._new_rows(0, most[0]):
            numbers = {k: v for k, v in row.items() if k != "step" and type(v) in (int, float)}
            self._at(row).numbers.update(numbers)
        newest = max(self._waiting, default=-1)  # one that only has samples may lack its metrics
        for row in self._new_rows(1, most[1]):
            self._at(row).samples.append(row)
        return newest

    def _new_rows(self, index: int, most: int) -> list[dict[str, Any]]:
        with open(self._files[index], "rb") as opened:
            opened.seek(self._num_read[index])
            content = opened.read(most)
        *lines, unfinished = content.split(b"\n")
        self._num_read[index] += len(content) - len(unfinished)
        rows: list[dict[str, Any]] = []
        for line in lines:
            with contextlib.suppress(UserError):  # half a line, which a full disk has left
                rows.append(parse_json(line, dict[str, Any], name="a row", remedy="delete it"))
        return [row for row in rows if isinstance(row.get("step"), int)]

    def _at(self, row: dict[str, Any]) -> TrackedStep:
        return self._waiting.setdefault(row["step"], TrackedStep(row["step"]))

    def take(self, up_to: int) -> list[TrackedStep]:
        """Removes and returns the steps up to one, in their order."""
        return [self._waiting.pop(step) for step in sorted(self._waiting) if step <= up_to]


def follow(tracker: Tracker, folder: Path, *, sizes: Sequence[int], source: int) -> None:
    """Passes on the rows of a run until it ends.

    Args:
      tracker: the tracker.
      folder: folder of the tracker in the workdir.
      sizes: sizes of `FILES` when the run was started or resumed, in bytes.
      source: file descriptor of the lines about the run.
    """
    workdir, steps = folder.parent, _Steps(folder.parent)
    kept = steps.look(most=sizes)
    position = _position(folder, tracker, kept=kept)
    config = read_json(workdir / "config.json", dict[str, Any], remedy="train again")
    tracker.open(workdir, config=config, position=position)
    written, heard, is_over = kept, b"", False
    while not is_over:
        if select.select([source], [], [], _EVERY_SECONDS)[0]:
            new = os.read(source, 1 << 16)
            heard, is_over = heard + new, not new
            written = max([written, *(int(line) for line in heard.split() if line.isdigit())])
            if is_over:
                signal.alarm(_MOST_SECONDS_AFTER_RUN)
        newest = steps.look()
        tracked = steps.take(sys.maxsize if is_over else max(written, newest - 1))
        if later := [step for step in tracked if step.step > position.last_step]:
            for step in later:
                tracker.log(step)
            tracker.flush()
            position = replace(position, last_step=later[-1].step)
            _save(position, folder)
    report = workdir / "report.html"
    tracker.close(report if report.exists() else None, failed=not heard.endswith(b"done\n"))


def _position(folder: Path, tracker: Tracker, *, kept: int) -> Position:
    """Returns how far a tracker is, if the run has kept its rows up to a step; -1: none."""
    try:
        saved = read_json(folder / "progress.json", Position, remedy="delete it")
    except UserError:  # it is missing or damaged
        saved = None
    if saved is None or kept < 0:
        return Position(secrets.token_hex(4), -1)
    last_step = min(saved.last_step, kept) if tracker.can_go_back else saved.last_step
    return replace(saved, last_step=last_step)


def _save(position: Position, folder: Path) -> None:
    with replacing(folder / "progress.json") as partial:
        partial.write_text(json.dumps(asdict(position)), encoding="utf-8")


def main(name: str, workdir: str, *sizes: str) -> int:
    """Runs the process; what fails is the last line that it prints."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end of the run is its end
    sys.modules["torch"] = None  # type: ignore[assignment]  # tensorboardX loads it, for seconds
    try:
        tracker, folder = TRACKERS[name](), Path(workdir) / name
        follow(tracker, folder, sizes=[*map(int, sizes)], source=sys.stdin.fileno())
    except BaseException as error:  # a package may even try to end the process
        traceback.print_exc()
        print(shortened(f"{type(error).__name__}: {error}"), file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
