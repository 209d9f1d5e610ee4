"""Ctrl-C, SIGTERM and SIGHUP as requests, which the training loop answers between two steps."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class InterruptRequest:
    """While active, keeps the first signal for the loop; a second one stops the process at once.

    Only the main thread can catch signals; in any other thread this does nothing.

    Attributes:
      signal_number: number of the first signal; None: there was none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "InterruptRequest":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._note)
                for number in self.SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN  # set by nohup
            }
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.signal_number = number
        # Not print, since the signal may have arrived in the middle of one.
        with contextlib.suppress(OSError):  # stderr may be closed; the state is saved anyway
            os.write(2, b"\nSaving after this step. Ctrl-C again stops at once, without saving.\n")
