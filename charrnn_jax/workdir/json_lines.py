"""`JsonLines`: a file of rows that survives kills, resumed runs and full disks."""

import contextlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.processes import is_first_process
from charrnn_jax.reading import Count, parse_json, read_bytes, typed

_MAX_BYTES = 1 << 30


class JsonLines:
    """A file with one JSON object per line, each of which has a "step".

    A run that resumes from step k keeps the rows up to step k and drops later ones, since it writes
    them again. If the disk is full, rows are lost but the run continues. In a job of several
    processes, only the first writes.

    Args:
      file: path of the file.
      keep_until_step: last step whose rows are kept.
    """

    def __init__(self, file: Path, *, keep_until_step: int):
        self._file = file
        self._failed = False
        self._writes = is_first_process()
        if not self._writes:
            return
        rows = [row for row in read_json_lines(file) if row["step"] <= keep_until_step]
        with replacing(file) as partial:
            partial.write_text("".join(map(_to_line, rows)), encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; numbers that are not finite become null."""
        if not self._writes:
            return
        try:
            with open(self._file, "a", encoding="utf-8") as out:
                # A failed write may have left half a line, which must not spoil this one.
                out.write("\n" * self._failed + _to_line(row))
            self._failed = False
        except OSError as error:
            if not self._failed:
                warnings.warn(
                    f"cannot write to {self._file} ({error.strerror}): rows are lost until this "
                    "is fixed",
                    stacklevel=2,
                )
            self._failed = True


def read_json_lines(file: Path | str) -> list[dict[str, Any]]:
    """Returns the rows of a file; none if there is no file. Lines that are not rows are skipped.

    Raises:
      UserError: the file cannot be read.
    """
    if not Path(file).exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in read_bytes(file, max_bytes=_MAX_BYTES).split(b"\n"):
        with contextlib.suppress(UserError):  # a line that a killed process left unfinished
            row = parse_json(line, dict[str, Any], name="a row", remedy="delete it")
            typed(row.get("step"), Count, name="its step", remedy="delete it")
            rows.append(row)
    return rows


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
