"""An experiment file, and the command-line flags that change its fields -> a config.

An experiment is a Python file that defines `get_config() -> ConfigDict`, or `get_config(arg)` for
--config=FILE:ARG. It may register code (see `registry`) and import files from its own folder. The
experiments that come with the package are presets, found by name alone: --config=quick.
"""

import contextlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from charrnn_jax.config import TYPE_NAMES, flatten, no_such_field
from charrnn_jax.errors import UserError, shortened, shown
from charrnn_jax.reading import read_bytes


def presets() -> dict[str, Path]:
    """Returns the experiments that come with the package: name -> file."""
    package = Path(__file__).parent
    # A wheel has them inside the package, a clone beside it.
    folders = (package / "presets", package.parent / "experiments")
    folder = next(filter(Path.is_dir, folders), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def find_experiment(name: str) -> Path:
    """Returns the absolute path of an experiment.

    Args:
      name: path of a file, or name of a preset. If both exist, the file is meant.

    Raises:
      UserError: there is no such file and no such preset.
    """
    if os.path.isfile(name):
        return Path(name).resolve()
    if (preset := presets().get(name)) is None:
        known = ", ".join(presets())
        raise UserError(f"there is no experiment file {shown(name)}; the presets are {known}")
    return preset.resolve()


def load_experiment(file: str, arg: str = "") -> ConfigDict:
    """Returns the locked config of an experiment.

    Args:
      file: path of the file, or name of a preset.
      arg: argument for its `get_config`; "": none, or an empty one if it takes one.

    Raises:
      UserError: the file is missing, does not run, or has no `get_config` that takes `arg`.
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


def call_experiment(file: str, function: str, argument: Any, arg: str = "") -> Any:
    """Calls a function of an experiment file and returns its value.

    Args:
      file: path of the file.
      function: name of the function, such as "get_hyper".
      argument: the function's first argument.
      arg: its argument `arg`, if it has one, as for `get_config`.

    Raises:
      UserError: the file is missing, does not run, or has no such function.
    """
    with _running(file) as module:
        call = _find(module, function)
        takes_arg = "arg" in inspect.signature(call).parameters
        return call(argument, arg=arg) if takes_arg else call(argument)


def register_file(file: str) -> None:
    """Runs an experiment file for the names that it registers.

    Raises:
      UserError: the file is missing or does not run.
    """
    with _running(file):
        pass


@contextmanager
def _running(file: str) -> Iterator[types.ModuleType]:
    """Runs a file as a module, with its folder on the import path; errors name the file."""
    path = find_experiment(file)
    module = types.ModuleType(f"experiment {path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up here
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(read_bytes(path), str(path), "exec"), module.__dict__)
        yield module
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = shortened(f"{type(error).__name__}: {error}", length=500)
        raise UserError(f"{file} does not run: {reason}") from error
    finally:
        with contextlib.suppress(ValueError):  # the file has removed it
            sys.path.remove(str(path.parent))
        if str(path.parent) not in sys.path:  # for imports inside functions
            sys.path.append(str(path.parent))


def _find(module: types.ModuleType, function: str) -> Callable[..., Any]:
    if (found := getattr(module, function, None)) is None:
        raise UserError(f"{module.__file__} has no function {function}")
    return found


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Sets fields of a config from arguments of the form --config.SECTION.FIELD=VALUE.

    Raises:
      UserError: an argument has another form, its field does not exist, or its value has the wrong
        type.
    """
    flat = flatten(config)
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--config.").partition("=")
        if not (argument.startswith("--config.") and equals):
            what = f"what is {shown(argument)}?"
            raise UserError(f"{what} Set a field by --config.SECTION.FIELD=VALUE")
        if name not in flat:
            raise no_such_field(name, flat)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["charrnn", *arguments]
    )
    try:
        values(["charrnn", *arguments])
    except flags.Error as error:
        if wrong := re.match(r"flag (--config\.([\w.]+)=)", str(error)):
            prefix, name = wrong.groups()
            value = next(a.removeprefix(prefix) for a in arguments if a.startswith(prefix))
            kind = TYPE_NAMES[type(flat[name])]
            raise UserError(f"config.{name} is {shown(value)}; it must be {kind}") from error
        raise UserError(shortened(str(error))) from error
    return config
