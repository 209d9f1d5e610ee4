"""`sessions.jsonl`: when, where and how a run was trained, a row for each process that trained it.

A process that ended before it saved a checkpoint leaves no row: what it did is trained again.
"""

import contextlib
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax

from charrnn_jax.errors import UserError
from charrnn_jax.host_devices import describe_processor, num_cores
from charrnn_jax.reading import Count, typed
from charrnn_jax.workdir.json_lines import read_json_lines

_LIBRARIES = ("charrnn_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Session:
    """What one process did for a run.

    Attributes:
      step: first step that it trained. A run that resumes from step k drops the rows of later
        steps, so it must be above k.
      started: date and time, in UTC, as ISO 8601.
      command: the words of the command; of a notebook, the command that started it.
      devices: number and kind of the devices that shared a batch.
      machine: processor and system.
      versions: versions of Python and of the libraries, by their names.
    """

    step: Count
    started: str
    command: list[str]
    devices: str
    machine: str
    versions: dict[str, str]


def describe_session(first_step: int, *, num_devices: int) -> Session:
    """Returns the session of this process.

    Args:
      first_step: first step that it trains.
      num_devices: number of devices that share a batch, those of other processes included.
    """
    return Session(
        step=first_step,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(),
        devices=f"{num_devices} x {jax.devices()[0].device_kind}",
        machine=f"{num_cores()} cores of {describe_processor()}, {platform.system()}",
        versions={
            "python": platform.python_version(),
            **{name: version_of(name) for name in _LIBRARIES},
        },
    )


def version_of(library: str) -> str:
    """Returns the version of an installed library."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # ours, run from the source tree
        return "(not installed)"


def read_sessions(workdir: Path) -> Iterator[Session]:
    """Yields the sessions of a run; damaged rows are skipped.

    Raises:
      UserError: the file cannot be read.
    """
    for row in read_json_lines(workdir / "sessions.jsonl"):
        with contextlib.suppress(UserError):
            yield typed(row, Session, name="a row", remedy="delete it")


def _command() -> list[str]:
    program, *flags = sys.argv
    if Path(program).parts[-2:] == ("charrnn_jax", "main.py"):
        return ["python", "-m", "charrnn_jax.main", *flags]
    return [Path(program).name, *flags]
