"""An experiment file, and the flags of a command line that change it -> a config.

An experiment is a Python file with `get_config() -> ConfigDict`, or `get_config(arg)` for
--config=FILE:ARG. It may register code of its own (see `registry`) and import files beside it.
"""

import glob
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from charrnn_jax.config import flatten, no_such_field
from charrnn_jax.errors import UserError


def load_experiment(file: str, arg: str = "") -> ConfigDict:
    """Returns the config of an experiment file, locked.

    Args:
      file: path of the file.
      arg: argument of its `get_config`.

    Raises:
      UserError: the file is not there, does not run, or has no `get_config` that takes `arg`.
    """
    with _running(file) as module:
        get_config = _find(module, "get_config")
        takes_arg = bool(inspect.signature(get_config).parameters)
        if arg and not takes_arg:
            raise UserError(f"{file} takes no argument, so leave out ':{arg}'")
        config = get_config(arg) if takes_arg else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {file} returned {type(config).__name__}, not a ConfigDict")
    return config.lock()


def call_experiment(file: str, function: str, argument: Any) -> Any:
    """Returns what a function of an experiment file returns, such as `get_hyper(hyper)`.

    Raises:
      UserError: the file is not there, does not run, or has no such function.
    """
    with _running(file) as module:
        return _find(module, function)(argument)


def register_file(file: str) -> None:
    """Runs an experiment file for what it registers.

    Raises:
      UserError: the file is not there, or does not run.
    """
    with _running(file):
        pass


@contextmanager
def _running(file: str) -> Iterator[types.ModuleType]:
    """Runs a file as a module, with its folder on the path, and reports errors by its name."""
    if not os.path.isfile(file):
        there = ", ".join(sorted(glob.glob("experiments/*.py"))) or "none in ./experiments"
        raise UserError(f"there is no experiment file {file!r}; there are {there}")
    path = Path(file).resolve()
    module = types.ModuleType(f"experiment {path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        yield module
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{file} does not run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
        if str(path.parent) not in sys.path:  # for what it imports later, inside a function
            sys.path.append(str(path.parent))


def _find(module: types.ModuleType, function: str) -> Callable[..., Any]:
    if (found := getattr(module, function, None)) is None:
        raise UserError(f"{module.__file__} has no function {function}")
    return found


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Sets fields from arguments of the form --config.SECTION.FIELD=VALUE.

    Raises:
      UserError: an argument of another form, a field that is not there, or a value of another type.
    """
    flat = flatten(config)
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--config.").partition("=")
        if not (argument.startswith("--config.") and equals):
            raise UserError(f"what is {argument!r}? Fields are set by --config.SECTION.FIELD=VALUE")
        if name not in flat:
            raise no_such_field(name, flat)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["charrnn", *arguments]
    )
    try:
        values(["charrnn", *arguments])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    return config
