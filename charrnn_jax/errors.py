"""Errors that are raised on purpose, each with the exit code that it gives a command.

Any other exception is a bug and keeps its traceback.
"""

import errno
import reprlib

_VALUES = reprlib.Repr()
_VALUES.maxlevel = 2
_VALUES.maxstring = _VALUES.maxother = 120


def shortened(text: str, *, length: int = 200) -> str:
    """Returns a text as one line; of one that is too long, the head and the tail.

    >>> shortened("one\\ntwo"), shortened("a" * 90 + "b" * 90, length=15)
    ('one two', 'aaaaa ... bbbbb')

    Args:
      text: the text, of any length.
      length: length of the longest line that is returned, in characters.
    """
    half = (length - 5) // 2
    if len(text) > 4 * length:
        text = f"{text[: 2 * length]}{text[-2 * length :]}"
    text = " ".join(line.strip() for line in text.splitlines())
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def shown(value: object) -> str:
    """Returns `repr(value)` for an error; of one that is long, the head and the tail.

    >>> shown("a"), len(shown("a" * 1000))
    ("'a'", 120)
    """
    try:
        return shortened(_VALUES.repr(value))
    except ValueError:  # a number with more digits than Python prints
        return "a number of thousands of digits"


class UserError(ValueError):
    """Bad usage, config or data; one line says what, where and what to do. Exit code 2."""

    exit_code = 2


class BusyError(UserError):
    """Another process is using the folder."""


class TrainingError(RuntimeError):
    """Training failed: the loss is not finite, or the state cannot be saved. Exit code 1."""

    exit_code = 1


class DivergedError(TrainingError):
    """The loss or the parameters are not finite."""


class LeakError(TrainingError):
    """A loss is lower than any model can have: what it should predict is in its inputs."""


class Interrupted(BaseException):
    """A signal ended training after the state was saved. Exit code 128 + signal number.

    Like KeyboardInterrupt it is not an `Exception`, so that no handler catches it by accident.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(signal_number, step)
        self.exit_code = 128 + signal_number
        self.step = step


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = {
    **dict.fromkeys(_FULL, "make room there, or give another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or give another"),
    errno.EROFS: "give a folder that can be written",
    errno.ENOENT: "check the name",
    errno.ELOOP: "its links lead in a circle; give another",
    errno.ENAMETOOLONG: "give a shorter name",
}


def file_error(
    error: OSError, *, path: object = None, doing: str = "use", remedy: str = ""
) -> UserError | TrainingError:
    """Returns the error that tells a person in one line what the system has reported.

    Args:
      error: the error of the system.
      path: file or folder that it is about; None: the one that it names.
      doing: what cannot be done: "cannot `doing` `path`".
      remedy: what to do; "": what suits the kind of error.

    Returns:
      A `TrainingError` if a disk is full, or a limit on sizes is reached; otherwise a `UserError`.
    """
    kind = TrainingError if error.errno in _FULL else UserError
    reason = error.strerror or str(error)
    if not (path := path or error.filename):  # no file, such as no memory for a process
        return kind(reason)
    remedy = remedy or _REMEDIES.get(error.errno or 0, "check it, or give another")
    return kind(f"cannot {doing} {path} ({reason}): {remedy}")
