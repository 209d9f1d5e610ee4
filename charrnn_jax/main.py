"""The command line: a table of commands.

python -m charrnn_jax.main [COMMAND] --config=FILE[:ARG] --workdir=DIR [--config.SECTION.FIELD=V]
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports below

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from charrnn_jax.errors import Interrupted, TrainingError, UserError, file_error, shortened
from charrnn_jax.memory import keep_freed_memory
from charrnn_jax.messages import OUTPUT, PROGRESS, show
from charrnn_jax.training.interrupt import StopsCommand

# Name -> help. Each is the module of its name in `charrnn_jax.commands` ("import" is `import_`).
COMMANDS = {
    "train": "train a model, or resume a run (the default)",
    "evaluate": "compute the loss on a whole split",
    "sample": "generate text",
    "score": "compute the loss of a given text",
    "report": "write a run as one web page: curves, samples, losses, config",
    "neurons": "say which hidden units follow what, and show them, as a web page",
    "compare": "say whether runs differ on the same text, and where",
    "judge": "say how good generated text is, beside real text",
    "sweep": "train all work units of an experiment's get_hyper, and write a report",
    "search": "search the space of an experiment's get_search, within a budget",
    "export": "export a model as a folder or a web page",
    "import": "turn a model of PyTorch or Keras into a run",
    "check": "verify a run, and say what can be resumed",
    "config": "print a preset, to be copied and edited, or list the presets",
    "corpora": "list the known corpora and where each one is",
}
_MOST_CHARS = 950  # in the line of an error

_FIRST_STEPS = """\
charrnn trains and studies character-level language models. To begin:
  charrnn --config=quick                                  train a small model, in minutes
  charrnn --config=own_text --config.data.path=FILE       the same on your own text
  charrnn sample --workdir=runs/quick --prompt="ROMEO:"   let it write
  charrnn config                                          list the presets
  charrnn --help                                          list the commands"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    The code is 0 for success, 1 if training failed, 2 for bad usage, config or data, 129, 130 or
    143 after a hang-up, Ctrl-C or SIGTERM, and 141 if the reader of the output has gone.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any text can be shown on any terminal
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    if argv == ["--version"]:
        show(f"charrnn_jax {version('charrnn_jax')}")
        return 0
    if not argv:
        show(_FIRST_STEPS, to="stderr")
        return UserError.exit_code
    with StopsCommand() as stop:
        try:
            _run(argv)
            return 0
        except Interrupted as interrupted:
            return interrupted.exit_code
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except Exception as error:
            if stop.signal_number is not None:  # an import that is interrupted raises ImportError
                return 128 + stop.signal_number
            return _explain(error)


def _run(argv: list[str]) -> None:
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "train"
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")
    command = import_module(f"charrnn_jax.commands.{name.replace('import', 'import_')}")
    args, overrides = _make_parser(name, command).parse_known_args(argv)
    PROGRESS.setLevel(
        logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
    )
    keep_freed_memory()
    command.run(args, overrides)
    show(end="", flush=True)  # here, so that a reader that has gone is noticed in `main`


def _explain(error: Exception) -> int:
    """Prints an error that is not a bug in one line, and returns its exit code."""
    if isinstance(error, UserError | TrainingError):
        return _fail(str(error), error.exit_code)
    is_broken_pipe = isinstance(error, BrokenPipeError)
    if is_broken_pipe or (isinstance(error, OSError) and error.filename == OUTPUT):
        # Python would try to write the rest when it exits, and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if is_broken_pipe:  # the reader of the output has gone, as `head` does
        return 128 + signal.SIGPIPE
    if isinstance(error, OSError):  # a folder that cannot be read or written, a full disk
        explained = file_error(error)
        return _fail(str(explained), explained.exit_code)
    if isinstance(error, RuntimeError | MemoryError):
        if re.match("Symlink loop|Could not determine home directory", str(error)):
            return _fail(f"{error}: give another path", UserError.exit_code)  # by pathlib
        is_memory = isinstance(error, MemoryError)
        if not (is_memory or re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error))):
            raise error  # out of memory has had several types in JAX, so the message decides
        hint = "out of memory: try a smaller --config.data.batch_size or --config.model.hidden_size"
        return _fail(hint, TrainingError.exit_code)
    raise error


def _fail(message: str, exit_code: int) -> int:
    line = shortened(message, length=_MOST_CHARS)
    with contextlib.suppress(OSError):  # nothing can be said
        show(f"charrnn: error: {line}", to="stderr")
    return exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _make_parser(name: str, command: Any) -> argparse.ArgumentParser:
    table = "\n".join(f"  {name:10}{does}" for name, does in COMMANDS.items())
    parser = _Parser(
        prog=f"charrnn {name}",
        description=f"{COMMANDS[name]}\n\ncommands (charrnn COMMAND --help):\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_flags(parser)
    group = parser.add_argument_group("messages").add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="show results and warnings only")
    group.add_argument("--verbose", action="store_true", help="show what is done, and where")
    return parser


def _show_warning(message: Warning | str, *_: Any) -> None:
    with contextlib.suppress(OSError):  # a warning ends no command, even if it cannot be shown
        show(f"charrnn: warning: {message}", to="stderr")


def program() -> NoReturn:
    """Runs `main` and ends the process. Once all is written, a signal changes no exit code."""
    exit_code = main()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(exit_code)


if __name__ == "__main__":
    program()
