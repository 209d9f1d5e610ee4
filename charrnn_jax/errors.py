"""Errors that are raised on purpose, each with the exit code that it gives a command.

Any other exception is a bug and keeps its traceback.
"""


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


class Interrupted(BaseException):
    """A signal ended training after the state was saved. Exit code 128 + signal number.

    Like KeyboardInterrupt it is not an `Exception`, so that no handler catches it by accident.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(signal_number, step)
        self.exit_code = 128 + signal_number
        self.step = step
