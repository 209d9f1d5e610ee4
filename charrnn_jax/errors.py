"""The errors this project raises on purpose, each with the exit code it ends a command with.

Anything else that escapes is a bug, and keeps its traceback.
"""


class UserError(ValueError):
    """Bad usage, config or data: one line that says what, where and what to do. Exit code 2."""

    exit_code = 2


class BusyError(UserError):
    """Another process has the folder."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is not finite, or a state that cannot be saved. Exit 1."""

    exit_code = 1


class DivergedError(TrainingError):
    """The loss or the parameters are not finite."""


class Interrupted(BaseException):
    """A signal ended training after the state was saved. Exit code 128 + signal number.

    Like KeyboardInterrupt it is no `Exception`, so that no handler swallows it by accident.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(signal_number, step)
        self.exit_code = 128 + signal_number
        self.step = step
