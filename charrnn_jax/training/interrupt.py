"""Ctrl-C, SIGTERM and a hang-up as a request that the training loop answers between two steps."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class InterruptRequest:
    """While active, the first of the signals is only noted; a second one stops at once.

    Signals can be caught in the main thread alone; in another thread this does nothing.
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
                if signal.getsignal(number) != signal.SIG_IGN  # as nohup asks for
            }
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.signal_number = number
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(
            OSError
        ):  # its reader may be gone: the state is saved all the same
            os.write(2, b"\nSaving after this step; once more stops at once, without saving.\n")
