"""Keeps Orbax from printing tracebacks of a failed write, which is reported in one line."""

import gc
import logging
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from charrnn_jax.errors import TrainingError


class QuietOrbax:
    """While active, Orbax prints no tracebacks of a failed write, which `Checkpoints` reports.

    Its threads log each error before they raise it. When one fails, others still run, and what they
    have begun is complained about whenever it ends. So after a failure, this stays active.
    """

    _LOGGERS = ("absl", "asyncio")

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._hook_before = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        for name in self._LOGGERS:
            logging.getLogger(name).addFilter(self._is_shown)

    def end(self, *, failure: BaseException | None) -> None:
        """Ends it, unless a write has failed."""
        if isinstance(failure, TrainingError) and failure.__cause__:
            error: BaseException | None = failure.__cause__
            while error:  # its frames would keep unfinished operations until Python exits
                traceback.clear_frames(error.__traceback__)
                error = error.__cause__ or error.__context__
            for thread in threading.enumerate():
                if type(thread).__module__.startswith("orbax."):
                    threading.Thread.join(thread, timeout=10)  # its own raises the error again
            gc.collect()
            return
        for name in self._LOGGERS:
            logging.getLogger(name).removeFilter(self._is_shown)
        sys.unraisablehook = self._hook_before

    def _is_shown(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and self._is_of_write(record.exc_info[1]))

    def _unraisable(self, lost: Any) -> None:
        if not self._is_of_write(lost.exc_value):
            self._hook_before(lost)

    def _is_of_write(self, error: BaseException | None) -> bool:
        # TensorStore reports to the event loop of a thread of Orbax, which may have ended.
        if str(error) == "Event loop is closed" or self._folder in str(error):
            return True
        frames = traceback.walk_tb(error.__traceback__ if error else None)
        return any("orbax" in Path(frame.f_code.co_filename).parts for frame, _ in frames)
