"""What several commands share: flags, their values, and what they name: a config, a run, a text."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charrnn_jax.errors import UserError


def run_flags(parser: argparse.ArgumentParser) -> None:
    """--config and --workdir."""
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="experiment file; a field of it is changed by --config.SECTION.FIELD=VALUE",
    )
    parser.add_argument("--workdir", metavar="DIR", help="of the run; default: runs/<config name>")


def checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Those of a run, and which checkpoint of it."""
    run_flags(parser)
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|latest|STEP", help="default: best"
    )


def job_flags(parser: argparse.ArgumentParser) -> None:
    """Those that join several processes, on one machine or many, to train one model."""
    group = parser.add_argument_group(
        "one model, several processes",
        "start the same command once for each process, with all three of the first flags",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0's host")
    group.add_argument("--num_processes", type=positive, metavar="N", help="of the job")
    group.add_argument("--process_id", type=natural, metavar="I", help="of this one: 0 to N - 1")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="instead: found out from Slurm, a TPU pod or GKE",
    )


def join_job(args: argparse.Namespace) -> None:
    """Joins the processes that the flags name, if they do. Comes before any use of a device.

    Raises:
      UserError: only some of the flags are there, or the other processes cannot be found.
    """
    three = (args.coordinator, args.num_processes, args.process_id)
    given = [value is not None for value in three]
    if any(given) and (args.distributed or not all(given)):
        raise UserError(
            "several processes need --coordinator=HOST:PORT --num_processes=N --process_id=I, all "
            "three, or --distributed alone"
        )
    if not (args.distributed or all(given)):
        return
    if all(given) and not (
        args.process_id < args.num_processes and re.fullmatch(r".+:\d+", args.coordinator)
    ):
        raise UserError(
            f"--coordinator={args.coordinator} --num_processes={args.num_processes} "
            f"--process_id={args.process_id} do not fit: HOST:PORT, ids from 0 to N - 1"
        )
    from charrnn_jax.processes import join_processes

    join_processes(args.coordinator, num_processes=args.num_processes, process_id=args.process_id)


def register_flag(parser: argparse.ArgumentParser) -> None:
    """--register, of `sweep` and `search`."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE",
        help="an experiment file that registers what the config names; given to workers",
    )


def register_experiments(args: argparse.Namespace) -> None:
    """Runs the experiment files of --register. Comes before anything reads a config."""
    if args.register:
        from charrnn_jax.experiment import register_file

        for file in args.register:
            register_file(file)


def experiment_files(args: argparse.Namespace) -> tuple[str, ...]:
    """The files, as absolute paths, that a worker has to run for what they register."""
    from charrnn_jax.registry import has_registered

    files = [*args.register, *([args.config.partition(":")[0]] if args.config else [])]
    return tuple(str(Path(file).resolve()) for file in files) if has_registered() else ()


def unk_flag(parser: argparse.ArgumentParser) -> None:
    """What to do with unknown characters."""
    parser.add_argument(
        "--unk",
        default="error",
        choices=("error", "skip"),
        help="what happens to characters that the model does not know; default: error",
    )


def baseline_flag(parser: argparse.ArgumentParser) -> None:
    """What a report compares with."""
    parser.add_argument(
        "--baseline",
        type=_settings,
        metavar="FIELD=VALUE,...",
        help="configuration that a report compares the others with; default: the first",
    )


def positive(text: str) -> int:
    """A whole number above 0."""
    return _number(text, int, 1)


def natural(text: str) -> int:
    """A whole number from 0."""
    return _number(text, int, 0)


def path(text: str) -> Path:
    """A path that is not empty, as that of an unset variable of the shell is."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text).expanduser()


def real(text: str) -> float:
    """A finite number from 0."""
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
        except ValueError:
            settings[name] = value
    return settings


def _number(text: str, kind: type, low: int) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value < 2**31:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no {kind.__name__} of at least {low} and below 2**31"
        )
    return value


def load_config(args: argparse.Namespace, overrides: list[str]) -> tuple[Any, Path]:
    """Returns the config with its overrides, checked, and the workdir."""
    if not args.config:
        raise UserError("--config is missing: give an experiment, --config=experiments/quick.py")
    from charrnn_jax.config import validate
    from charrnn_jax.experiment import load_experiment, override

    file, _, arg = args.config.partition(":")
    config = override(load_experiment(file, arg), overrides)
    validate(config)
    if args.workdir:
        return config, Path(args.workdir).expanduser()
    return config, _default_workdir(file, arg, overrides)


def _default_workdir(file: str, arg: str, overrides: list[str]) -> Path:
    """runs/<config name>[-argument][-overrides]"""
    name = "-".join([Path(file).stem, arg, *(text.removeprefix("--config.") for text in overrides)])
    name = re.sub(r"[^\w.=-]+", "_", name).replace("--", "-").rstrip("-")
    short = name.encode()[:200].decode(errors="ignore")  # file systems allow 255 bytes
    return Path("runs") / short


def open_run(args: argparse.Namespace, overrides: list[str]) -> Any:
    """Opens the run that --workdir or --config names, and says on stderr what it is.

    With both, the experiment file is run for what it registers.
    """
    if args.workdir:
        reject(overrides)
        if args.config:
            from charrnn_jax.experiment import register_file

            register_file(args.config.partition(":")[0])
        workdir = Path(args.workdir).expanduser()
    elif args.config:
        workdir = load_config(args, overrides)[1]
    else:
        raise UserError("which run? give --workdir=DIR, or the --config that it was trained with")
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.workdir.run import load_run

    keep_compiled_programs()
    opened = load_run(workdir, checkpoint=args.checkpoint)
    print(
        f"Run {workdir}, step {opened.step:,}, trained on {opened.corpus.describe()}",
        file=sys.stderr,
    )
    return opened


def reject(leftovers: list[str]) -> None:
    """Raises UserError for arguments that nothing reads."""
    if leftovers:
        raise UserError(f"what is {leftovers[0]!r}? See charrnn --help")


@contextlib.contextmanager
def hint_at_unk() -> Iterator[None]:
    """Errors about unknown characters name the flag that drops them."""
    from charrnn_jax.data.vocabulary import UnknownCharacterError

    try:
        yield
    except UnknownCharacterError as error:
        raise UserError(f"{error}; --unk=skip drops them") from error


def read_prompt(file: str, *, kind: str) -> str:
    """Returns the text of a file, or of standard input for "-", as a prompt.

    For a vocabulary of bytes it is the file as it is: what is no UTF-8 becomes surrogates, which
    the vocabulary turns back. Else a byte order mark is dropped, and CRLF and CR become LF.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the prompt in {file}: {error.strerror}") from error
    if kind == "bytes":
        return data.decode("utf-8", "surrogateescape")
    text = data.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(file: str, *, kind: str) -> str | bytes:
    """Returns a text as a vocabulary of this kind encodes it. file: "-" is standard input."""
    from charrnn_jax.data.corpora import load_corpus

    blocks: list[Any] = list(load_corpus(path=file).blocks(kind))
    return (b"" if kind == "bytes" else "").join(blocks)
