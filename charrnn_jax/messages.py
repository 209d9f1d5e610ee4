"""What a person reads while the package works, by way of `logging`.

There are two loggers. "charrnn_jax" reports progress, on standard output. "charrnn_jax.notes"
accompanies the results of a command, on standard error. A program that uses the package silences or
redirects them as usual: `logging.getLogger("charrnn_jax").setLevel(logging.WARNING)`.
"""

import logging
import sys

from tqdm import tqdm


class _Shown(logging.Handler):
    """Prints messages as they are, above a progress bar if there is one."""

    def __init__(self, stream: str):
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self._stream)  # looked up each time: notebooks and tests replace it
        tqdm.write(self.format(record), file=stream)
        stream.flush()


def _make_logger(name: str, stream: str) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.addHandler(_Shown(stream))
    logger.propagate = False  # else a program that configures the root logger shows all twice
    return logger


PROGRESS = _make_logger("charrnn_jax", "stdout")
PROGRESS.setLevel(logging.INFO)
NOTES = _make_logger("charrnn_jax.notes", "stderr")  # has the level of the other
