"""What several commands share: flags, their values, and how to open what they name."""

import argparse
import contextlib
import errno
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charrnn_jax.errors import UserError, file_error
from charrnn_jax.messages import NOTES

_LONGEST_NAME = 200  # bytes of the name of a default workdir; file systems allow 255


def config_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument(
        "--config",
        type=path_text,
        metavar="FILE_OR_PRESET[:ARG]",
        help="experiment; --config.SECTION.FIELD=VALUE changes a field of its config",
    )


def run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config and --workdir."""
    config_flag(parser)
    parser.add_argument(
        "--workdir",
        type=path,
        metavar="DIR",
        help="folder of the run; default: runs/<config name>",
    )


def checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run, and --checkpoint."""
    run_flags(parser)
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|latest|STEP",
        help="checkpoint to open; default: best",
    )


def job_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that join processes, on one or several machines, to train one model."""
    group = parser.add_argument_group(
        "one model, several processes",
        "start the same command once for each process, with the first three flags",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="host of process 0, and a free port there"
    )
    group.add_argument("--num_processes", type=positive, metavar="N", help="number of processes")
    group.add_argument(
        "--process_id", type=natural, metavar="I", help="number of this process, 0 to N - 1"
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="instead of these flags: read them from Slurm, a TPU pod or GKE",
    )


def join_job(args: argparse.Namespace) -> None:
    """Joins the processes that the flags name, if any. Call it before any use of a device.

    Raises:
      UserError: some of the flags are missing, or the other processes cannot be found.
    """
    three = (args.coordinator, args.num_processes, args.process_id)
    given = [value is not None for value in three]
    if any(given) and (args.distributed or not all(given)):
        raise UserError(
            "to train in several processes, give --coordinator=HOST:PORT, --num_processes=N and "
            "--process_id=I, all three, or --distributed alone"
        )
    if not (args.distributed or all(given)):
        return
    if all(given) and not (
        args.process_id < args.num_processes and re.fullmatch(r".+:\d+", args.coordinator)
    ):
        raise UserError(
            f"--coordinator={args.coordinator} --num_processes={args.num_processes} "
            f"--process_id={args.process_id} are not valid: give HOST:PORT, and ids from 0 to N - 1"
        )
    from charrnn_jax.processes import join_processes

    join_processes(args.coordinator, num_processes=args.num_processes, process_id=args.process_id)


def register_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --register, a flag of `sweep` and `search`."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        type=path_text,
        metavar="FILE",
        help="experiment file that registers names used in the config; may be repeated",
    )


def register_experiments(args: argparse.Namespace) -> None:
    """Runs the experiment files of --register. Call it before anything reads a config."""
    if args.register:
        from charrnn_jax.experiment import register_file

        for file in args.register:
            register_file(file)


def experiment_files(args: argparse.Namespace) -> tuple[str, ...]:
    """Returns the absolute paths of the files that a worker has to run for what they register."""
    from charrnn_jax.experiment import find_experiment
    from charrnn_jax.registry import has_registered

    files = [*args.register, *([args.config.partition(":")[0]] if args.config else [])]
    return tuple(str(find_experiment(file)) for file in files) if has_registered() else ()


def moved_text_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --path."""
    parser.add_argument(
        "--path",
        default="",
        type=path_text,
        metavar="TEXT",
        help="path of the run's text, if it was moved",
    )


def unk_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --unk."""
    parser.add_argument(
        "--unk",
        default="error",
        choices=("error", "skip"),
        help="what to do with characters that the model does not know; default: error",
    )


def baseline_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --baseline."""
    parser.add_argument(
        "--baseline",
        type=_settings,
        metavar="FIELD=VALUE,...",
        help="configuration that the report compares the others with; default: the first",
    )


def positive(text: str) -> int:
    """Parses a whole number above 0."""
    return _number(text, int, 1)


def natural(text: str) -> int:
    """Parses a whole number of at least 0."""
    return _number(text, int, 0)


def path(text: str) -> Path:
    """Parses a path, which need not exist.

    An empty one, as from an unset shell variable, is an error, as is one that no file can have.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        expanded = Path(text).expanduser()
        expanded.stat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the path {text!r} has a NUL character") from error
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"there is no such user as in {text!r}") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise argparse.ArgumentTypeError(str(file_error(error))) from error
    return expanded


def path_text(text: str) -> str:
    """Parses a flag that holds a path and perhaps more: FILE:ARG, a glob, "-", or nothing."""
    if text:
        path(text)
    return text


def real(text: str) -> float:
    """Parses a finite number of at least 0."""
    return _number(text, float, 0)


def _settings(text: str) -> dict[str, Any]:
    """model.cell=gru,model.num_layers=2 -> {"model.cell": "gru", "model.num_layers": 2}"""
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r} is not FIELD=VALUE")
        try:
            settings[name] = json.loads(value)
        except (ValueError, RecursionError):
            settings[name] = value
    return settings


def _number(text: str, kind: type, low: int) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value < 2**31:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a {'whole ' * (kind is int)}number of at least {low} and below "
            "2147483648"
        )
    return value


def load_config(args: argparse.Namespace, overrides: list[str]) -> tuple[Any, Path]:
    """Returns the config with its overrides, checked, and the workdir."""
    if not args.config:
        raise UserError("--config is missing: give a preset or a file, such as --config=quick")
    from charrnn_jax.config import validate
    from charrnn_jax.experiment import load_experiment, override

    file, _, arg = args.config.partition(":")
    config = override(load_experiment(file, arg), overrides)
    validate(config)
    if args.workdir:
        return config, args.workdir
    return config, _default_workdir(file, arg, overrides)


def _default_workdir(file: str, arg: str, overrides: list[str]) -> Path:
    """runs/<config name>[-argument][-overrides][-hash]

    The order of the overrides does not matter. The hash tells runs apart whose names would be the
    same because they are too long, or because of other characters than those of "1e-3" and "lstm".
    """
    # The last override of a field wins, as in the config.
    fields = dict(text.removeprefix("--config.").split("=", 1) for text in overrides)
    stem = Path(file).stem
    parts = [stem, *([arg] if arg else []), *(f"{name}={fields[name]}" for name in sorted(fields))]
    name = re.sub(r"[^\w.=-]+", "_", "-".join(parts))
    is_plain = all(re.fullmatch(r"[\w.-]*", text) for text in (stem, arg, *fields.values()))
    if is_plain and len(name.encode()) <= _LONGEST_NAME:
        return Path("runs") / name
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
    short = name.encode()[: _LONGEST_NAME - 1 - len(digest)].decode(errors="ignore")
    return Path("runs") / f"{short}-{digest}"


def open_run(args: argparse.Namespace, overrides: list[str]) -> Any:
    """Opens the run that --workdir or --config names, and describes it on standard error.

    If both are given, the experiment file is run for what it registers.
    """
    if args.workdir:
        reject(overrides)
        if args.config:
            from charrnn_jax.experiment import register_file

            register_file(args.config.partition(":")[0])
        workdir = args.workdir
    elif args.config:
        workdir = load_config(args, overrides)[1]
    else:
        raise UserError("which run? Give --workdir=DIR, or the --config that it was trained with")
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.workdir.run import load_run

    keep_compiled_programs()
    opened = load_run(workdir, checkpoint=args.checkpoint)
    NOTES.info(f"Run {workdir}, step {opened.step:,}, trained on {opened.corpus.describe()}")
    return opened


def reject(leftovers: list[str]) -> None:
    """Raises UserError for arguments that the command does not have."""
    if leftovers:
        raise UserError(f"what is {leftovers[0]!r}? See charrnn --help")


@contextlib.contextmanager
def hint_at_unk() -> Iterator[None]:
    """Adds the flag that drops unknown characters to errors about them."""
    from charrnn_jax.data.vocabulary import UnknownCharacterError

    try:
        yield
    except UnknownCharacterError as error:
        raise UserError(f"{error}; --unk=skip drops unknown characters") from error


def read_prompt(file: str, *, kind: str) -> str:
    """Returns the text of a file, or of standard input for "-", as a prompt.

    For a vocabulary of bytes the file is not changed: bytes that are not UTF-8 become surrogates,
    which the vocabulary turns back into bytes. Otherwise a byte order mark is dropped, and CRLF and
    CR become LF.

    Args:
      file: path of the file, or "-".
      kind: kind of the vocabulary, "characters" or "bytes".
    """
    from charrnn_jax.reading import refuse_device

    if file == "-" and sys.stdin is None:
        raise UserError("the prompt should come from standard input, which is closed")
    refuse_device(Path(file).expanduser())
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise file_error(error, path=file, doing="read the prompt in") from error
    if kind == "bytes":
        return data.decode("utf-8", "surrogateescape")
    text = data.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(file: str, *, kind: str) -> str | bytes:
    """Returns the text of a file, or of standard input for "-", for a vocabulary of this kind."""
    from charrnn_jax.data.corpora import load_corpus

    blocks: list[Any] = list(load_corpus(path=file).blocks(kind))
    return (b"" if kind == "bytes" else "").join(blocks)


@contextlib.contextmanager
def only_warning(file: Path, *, remedy: str) -> Iterator[None]:
    """Makes a warning of an error of the system: what was found is printed already."""
    try:
        yield
    except OSError as error:
        warnings.warn(str(file_error(error, path=file, doing="write", remedy=remedy)), stacklevel=3)
