"""`JsonLines`: a file of rows that survives kills, resumed runs and full disks."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing, sync
from charrnn_jax.processes import from_first, is_first_process
from charrnn_jax.reading import Count, parse_json, read_bytes, typed

ROW_FILES = ("metrics.jsonl", "samples.jsonl", "sessions.jsonl")  # of a run
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class RowsWritten:
    """What a file of rows holds at some moment, to notice later what has become of it.

    Attributes:
      num_rows: number of rows.
      sha256: SHA-256 of their lines, in hex.
    """

    num_rows: int
    sha256: str


class JsonLines:
    """A file with one JSON object per line, each of which has a "step".

    A run that resumes from step k keeps the rows up to step k and drops later ones, since it writes
    them again. If the disk is full, rows are lost but the run continues. In a job of several
    processes, only the first writes.

    Args:
      file: path of the file.
      keep_until_step: last step whose rows are kept.
      expected: what the file held after that step; damage is reported. None: not known.

    Attributes:
      file: path of the file.
    """

    def __init__(self, file: Path, *, keep_until_step: int, expected: RowsWritten | None = None):
        self.file = file
        self._failed = False
        self._num_rows = 0
        self._digest = hashlib.sha256()
        self._writes = is_first_process()
        from_first(lambda: self._open(keep_until_step, expected))

    def _open(self, keep_until_step: int, expected: RowsWritten | None) -> None:
        rows, problem = _inspect(self.file, until_step=keep_until_step, expected=expected)
        if problem and expected:  # a new run keeps no rows
            warnings.warn(f"{self.file} was damaged: {problem}; other rows are kept", stacklevel=2)
        lines = [_to_line(row) for row in rows]
        with replacing(self.file) as partial:
            partial.write_text("".join(lines), encoding="utf-8")
        for line in lines:
            self._count(line)

    @property
    def written(self) -> RowsWritten:
        """What the file holds now."""
        return RowsWritten(self._num_rows, self._digest.hexdigest())

    def _count(self, line: str) -> None:
        self._num_rows += 1
        self._digest.update(line.encode())

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; numbers that are not finite become null."""
        if not self._writes:
            return
        try:
            line = _to_line(row)
            with open(self.file, "a", encoding="utf-8") as out:
                # A failed write may have left half a line, which must not spoil this one.
                out.write("\n" * self._failed + line)
            self._failed = False
            self._count(line)
        except OSError as error:
            self._note_failure(error)

    def sync(self) -> None:
        """Waits until the rows are on the disk itself, so that a power failure keeps them."""
        if not self._writes or self._failed:
            return
        try:
            sync(self.file)
        except OSError as error:
            self._note_failure(error)

    def _note_failure(self, error: OSError) -> None:
        if not self._failed:
            warnings.warn(
                f"cannot write to {self.file} ({error.strerror}): rows are lost until this is "
                "fixed",
                stacklevel=3,
            )
        self._failed = True


def read_json_lines(file: Path | str) -> list[dict[str, Any]]:
    """Returns the rows of a file; none if there is no file. Lines that are not rows are skipped.

    Raises:
      UserError: the file cannot be read.
    """
    return _read(Path(file))[0]


def find_row_damage(
    file: Path, *, until_step: int, expected: RowsWritten | None = None
) -> tuple[int, str]:
    """Returns the number of rows up to a step, and what is wrong with the file; "": nothing.

    Args:
      file: path of the file.
      until_step: last step whose rows count.
      expected: what the file held after that step; None: not known.
    """
    rows, problem = _inspect(file, until_step=until_step, expected=expected)
    return len(rows), problem


def _inspect(
    file: Path, *, until_step: int, expected: RowsWritten | None
) -> tuple[list[dict[str, Any]], str]:
    """Returns the rows up to a step, and what is wrong with the file; see `find_row_damage`."""
    rows, num_damaged = _read(file)
    rows = [row for row in rows if row["step"] <= until_step]
    problems = []
    if num_damaged:
        problems.append(f"{num_damaged} of its lines cannot be read")
    if expected and len(rows) < expected.num_rows:
        problems.append(
            f"{expected.num_rows - len(rows)} rows up to step {until_step:,} are missing"
        )
    elif expected:
        content = "".join(map(_to_line, rows)).encode()
        if hashlib.sha256(content).hexdigest() != expected.sha256:
            problems.append("its rows are not those that were written")
    return rows, " and ".join(problems)


def _read(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the rows, and the number of damaged lines.

    The last line counts only if it is complete: a killed process, or one that is writing now, may
    have left a part of it.
    """
    if not file.exists():
        return [], 0
    rows: list[dict[str, Any]] = []
    num_damaged = 0
    *lines, unfinished = read_bytes(file, max_bytes=_MAX_BYTES).split(b"\n")
    for line in [*lines, unfinished]:
        try:
            row = parse_json(line, dict[str, Any], name="a row", remedy="delete it")
            typed(row.get("step"), Count, name="its step", remedy="delete it")
            rows.append(row)
        except UserError:
            num_damaged += bool(line) and line is not unfinished
    return rows, num_damaged


def read_number(row: Mapping[str, Any], name: str) -> float | None:
    """Returns a finite number of a row; None if it has none under this name."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _to_line(row: dict[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite) + "\n"
