"""The command line: a table of commands, nothing else.

python -m charrnn_jax.main [COMMAND] --config=FILE[:ARG] --workdir=DIR [--config.SECTION.FIELD=V]
"""

import argparse
import errno
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from charrnn_jax.errors import Interrupted, TrainingError, UserError

# What each does; it is the module of its name in `charrnn_jax.commands` ("import" is `import_`).
COMMANDS = {
    "train": "train a model, or resume a run (the default)",
    "evaluate": "loss of a whole split, by protocol",
    "sample": "generate text",
    "score": "loss of a given text",
    "sweep": "train all work units of an experiment's get_hyper, then report on them",
    "search": "a sweep over an experiment's get_search, within a budget",
    "export": "a model for places without this code: a folder, or a web page",
    "import": "a model of PyTorch or Keras becomes a run",
    "corpora": "known corpora, and which are here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0; 1 training failed; 2 bad usage, config or data;
    129, 130 or 143 after a hang-up, Ctrl-C or SIGTERM; 141 when the reader of our output went."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any text can be shown on any terminal
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        name = argv.pop(0) if argv and not argv[0].startswith("-") else "train"
        if name not in COMMANDS:
            raise UserError(f"no command {name!r}; there are {', '.join(COMMANDS)}")
        command = import_module(f"charrnn_jax.commands.{name.replace('import', 'import_')}")
        args, overrides = _make_parser(name, command).parse_known_args(argv)
        command.run(args, overrides)
        return 0
    except (UserError, TrainingError) as error:
        return _fail(str(error), error.exit_code)
    except Interrupted as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # a folder that cannot be read or written, a full disk
        full = error.errno == errno.ENOSPC
        return _fail(str(error), (TrainingError if full else UserError).exit_code)
    except RuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise  # JAX's word for it has had several types
        hint = "out of memory: try a smaller --config.data.batch_size or --config.model.hidden_size"
        return _fail(hint, TrainingError.exit_code)


def _fail(message: str, exit_code: int) -> int:
    print(f"charrnn: error: {message}", file=sys.stderr)
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
    return parser


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"charrnn: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
