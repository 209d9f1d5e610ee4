"""`Track`: a hook that lets another process copy the rows of a run to a tracker while it trains.

The other process runs `trackers`. It reads metrics.jsonl and samples.jsonl, so whatever a tracker
does, training neither waits for it nor fails with it: what fails there is one warning here. What it
prints goes to <workdir>/<name>/log.txt.
"""

import contextlib
import os
import subprocess
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax.errors import Interrupted, file_error, shortened
from charrnn_jax.processes import is_first_process
from charrnn_jax.registry import HOOKS
from charrnn_jax.training.trackers import FILES
from charrnn_jax.training.train_step import TrainState

_LAST_SECONDS = 30.0  # that the end of a run waits for a tracker
_STOPPED_SECONDS = 3.0  # the same after a signal, whose sender may not wait
_LEFT: list[subprocess.Popen[bytes]] = []  # Python would warn of a running process that it forgets


class Track:
    """The hook. It is a context manager, which starts the process and ends it.

    Each call tells the process, on its standard input, that all rows up to this step are written.
    It is entered when a resumed run has dropped the rows after its checkpoint.

    Args:
      name: name of the tracker, which is also that of its folder in the workdir.
      workdir: workdir of the run.
    """

    every_steps = 0  # at the end of an epoch, where training stops anyway

    def __init__(self, name: str, workdir: Path):
        self._name = name
        self._workdir = workdir
        self._log = workdir / name / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Track":
        if is_first_process():
            try:
                self._process = self._start()
            except OSError as error:
                self._warn(str(file_error(error)))
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        kept = [str((self._workdir / name).stat().st_size) for name in FILES]
        self._log.parent.mkdir(exist_ok=True)
        program = ("-m", "charrnn_jax.training.trackers", self._name, str(self._workdir), *kept)
        with open(self._log, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, *program],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C reaches only this process
            )
        os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
        return process

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        self._tell(f"{step}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):  # the process has ended
            self._process.stdin.write(line.encode())  # a full pipe is not waited for
        if self._process.poll() is not None:
            self._end(self._process)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tell("failed\n" if isinstance(error, Exception) else "done\n")
        if (process := self._process) is None or process.stdin is None:
            return
        process.stdin.close()
        is_stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
        seconds = _STOPPED_SECONDS if is_stopped else _LAST_SECONDS
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            _LEFT.append(process)
            self._process = None
            self._warn(f"it needs more than {seconds:g} s to end, and is left to itself")
            return
        self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Takes note that the process has ended, and warns if something went wrong in it."""
        self._process = None
        if process.stdin:
            process.stdin.close()
        if process.returncode:
            said = [f"exit code {process.returncode}"]
            with contextlib.suppress(OSError):
                said += self._log.read_text(errors="replace").splitlines()
            self._warn(shortened(said[-1]))

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"{self._name} does not record the whole run in {self._workdir} ({reason}); training "
            f"itself is not affected, and {self._log} has more",
            stacklevel=3,
        )


class _Missing:
    """A hook that does nothing, where a package is missing."""

    every_steps = 0

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None: ...


def make_track(config: ConfigDict, workdir: Path, *, name: str, package: str) -> Track | _Missing:
    """Makes the hook of a tracker; a missing package is a warning.

    Args:
      config: config of the run.
      workdir: workdir of the run.
      name: name of the tracker in `config.train.hooks`, and of the extra with its package.
      package: name that the package is imported by.
    """
    spec = find_spec(package)
    if spec and spec.origin:  # a mere folder of this name, as the package makes, has no origin
        return Track(name, workdir)
    if is_first_process():
        warnings.warn(
            f"config.train.hooks has {name}, but {package} is not installed, so the run is not "
            f'recorded there: pip install "charrnn_jax[{name}]"',
            stacklevel=2,
        )
    return _Missing()


for _name, _package in {"tensorboard": "tensorboardX", "wandb": "wandb"}.items():
    HOOKS.provide(_name, partial(make_track, name=_name, package=_package))
