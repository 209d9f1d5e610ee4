"""Ctrl-C, SIGTERM and SIGHUP: a command ends at once, training ends between two steps.

One wish to stop may arrive as several signals: Linux repeats the one that it sends when a parent
process dies, and launchers signal both a group and its members. Signals that follow the first
within a second are therefore the same wish. Only the main thread can catch signals; in any other
thread nothing here has an effect.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Self

_SAME_WISH_SECONDS = 1.0
_RETRY_SECONDS = 0.02
_IMPORTS = "<frozen importlib._bootstrap>"  # the file of every import's frames


class _Handler:
    """While active, handles the signals that ask a program to end.

    Attributes:
      signal_number: number of the first signal; None: there was none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle)
                for number in self.SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN  # set by nohup
            }
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._since = number, time.monotonic()
            self._first(number, frame)
        elif time.monotonic() - self._since >= _SAME_WISH_SECONDS:
            self._stop(number)

    def _first(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError

    def _stop(self, number: int) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


class InterruptRequest(_Handler):
    """While active, keeps the first signal for the loop; a second wish stops the process at once.

    Attributes:
      signal_number: number of the first signal; None: there was none.
    """

    def _first(self, number: int, frame: FrameType | None) -> None:
        # Not print, since the signal may have arrived in the middle of one.
        with contextlib.suppress(OSError):  # stderr may be closed; the state is saved anyway
            os.write(2, b"\nSaving after this step. Ctrl-C again stops at once, without saving.\n")


class StopsCommand(_Handler):
    """While active, a signal ends the command by an exception, so that its files are cleaned up.

    Ctrl-C raises KeyboardInterrupt, other signals SystemExit with their exit code. JAX runs
    callbacks from which no exception escapes: one that is lost there is raised again. During an
    import the process ends without an exception, which would crash the libraries that it comes to.
    """

    _starts_retry = False

    def __enter__(self) -> Self:
        self._hook_before = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if sys.unraisablehook == self._unraisable:  # nobody has set another one since
            sys.unraisablehook = self._hook_before

    def _first(self, number: int, frame: FrameType | None) -> None:
        if self._starts_retry:
            return
        while frame:
            if frame.f_code.co_filename == _IMPORTS:
                os._exit(128 + number)
            frame = frame.f_back
        self._stop(number)

    def _unraisable(self, lost: Any) -> None:
        number = self.signal_number
        if number is None or not isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
            self._hook_before(lost)
            return
        self._starts_retry = True
        while self._starts_retry:
            self.signal_number = None
            retry = threading.Timer(_RETRY_SECONDS, os.kill, (os.getpid(), number))
            retry.daemon = True
            retry.start()
            # On a busy machine the signal may have come already: here it would be lost again.
            self._starts_retry = self.signal_number is not None
