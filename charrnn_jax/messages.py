"""What a person reads while the package works, and how text is printed.

There are two loggers. "charrnn_jax" reports progress, on standard output. "charrnn_jax.notes"
accompanies the results of a command, on standard error. A program that uses the package silences or
redirects them as usual: `logging.getLogger("charrnn_jax").setLevel(logging.WARNING)`.

Text of a model, of a corpus or of a file name may have characters that a terminal obeys. On a
terminal they appear as escapes; files and pipes get the text as it is.
"""

import logging
import re
import sys
from typing import IO

from tqdm import tqdm

OUTPUT = "standard output"  # as errors name it
_STREAMS = {"stdout": OUTPUT, "stderr": "standard error"}
# Control characters except \n and \t, and the marks that change the direction of text.
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, stream: IO[str]) -> str:
    """Returns a text as it may be printed: on a terminal, "\\x1b[31m" is shown and not obeyed.

    Args:
      text: any text; line breaks and tabs stay.
      stream: stream that the text will be printed to; one that is no terminal gets it unchanged.
    """
    if not getattr(stream, "isatty", bool)():  # some programs give less than a file
        return text
    return _CONTROLS.sub(lambda control: ascii(control[0])[1:-1], text)


def show(text: object = "", *, end: str = "\n", flush: bool = False, to: str = "stdout") -> None:
    """Prints a text, as `printable` returns it.

    Args:
      text: the text.
      end: what to print after it, without changes.
      flush: whether to show it at once.
      to: "stdout" or "stderr".

    Raises:
      OSError: the stream cannot be written; the error names it.
    """
    stream = getattr(sys, to)  # looked up each time: notebooks and tests replace it
    try:
        print(printable(str(text), stream), end=end, file=stream, flush=flush)
    except OSError as error:
        raise OSError(error.errno, error.strerror, _STREAMS[to]) from error


def format_seconds(seconds: float) -> str:
    """Returns a duration in its two largest units.

    >>> format_seconds(9.7), format_seconds(125), format_seconds(7300)
    ('9.7 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


class _Shown(logging.Handler):
    """Prints messages above a progress bar, if there is one."""

    def __init__(self, stream: str):
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self._stream)
        try:
            tqdm.write(printable(self.format(record), stream), file=stream)
            stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, _STREAMS[self._stream]) from error


def _make_logger(name: str, stream: str) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.addHandler(_Shown(stream))
    logger.propagate = False  # else a program that configures the root logger shows all twice
    return logger


PROGRESS = _make_logger("charrnn_jax", "stdout")
PROGRESS.setLevel(logging.INFO)
NOTES = _make_logger("charrnn_jax.notes", "stderr")  # has the level of the other
