"""The command line: a table of commands, nothing else.

python -m charrnn_jax.main [COMMAND] --config=FILE[:ARG] --workdir=DIR [--config.SECTION.FIELD=V]
"""

import argparse
import contextlib
import errno
import io
import json
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from charrnn_jax.errors import Interrupted, TrainingError, UserError
from charrnn_jax.files import replacing


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
        args, overrides = _make_parser(name).parse_known_args(argv)
        COMMANDS[name].run(args, overrides)
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


def _make_parser(name: str) -> argparse.ArgumentParser:
    table = "\n".join(f"  {name:10}{command.does}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog=f"charrnn {name}",
        description=f"{COMMANDS[name].does}\n\ncommands (charrnn COMMAND --help):\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    COMMANDS[name].add_flags(parser)
    return parser


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="experiment file; a field of it is changed by --config.SECTION.FIELD=VALUE",
    )
    parser.add_argument("--workdir", metavar="DIR", help="of the run; default: runs/<config name>")


def _checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    _run_flags(parser)
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|latest|STEP", help="default: best"
    )


def _unk_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unk",
        default="error",
        choices=("error", "skip"),
        help="what happens to characters that the model does not know; default: error",
    )


def _positive(text: str) -> int:
    return _number(text, int, 1)


def _natural(text: str) -> int:
    return _number(text, int, 0)


def _temperature(text: str) -> float:
    return _number(text, float, 0)


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


# --- commands -----------------------------------------------------------------------------------


def _train(args: argparse.Namespace, overrides: list[str]) -> None:
    config, workdir = _load_config(args, overrides)
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.training.loop import train

    keep_compiled_programs()
    train(config, workdir)
    print(
        f"Trained; the run is in {workdir}. Next:\n"
        f"  python -m charrnn_jax.main sample --workdir={shlex.quote(str(workdir))}\n"
        f"  python -m charrnn_jax.main evaluate --workdir={shlex.quote(str(workdir))}"
    )


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    _checkpoint_flags(parser)
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--protocol", default="all", choices=("all", "cold", "carried"))
    parser.add_argument("--path", default="", metavar="TEXT", help="where the run's text is now")


def _evaluate(args: argparse.Namespace, overrides: list[str]) -> None:
    run = _open_run(args, overrides)
    from charrnn_jax.evaluation.protocols import PROTOCOLS, evaluate

    tokens = run.load_dataset(args.path).splits.with_context(args.split)
    if len(tokens) < 2:
        raise UserError(f"the run in {run.workdir} has no {args.split} split to evaluate")
    results = {}
    for protocol in PROTOCOLS if args.protocol == "all" else (args.protocol,):
        loss = evaluate(
            run.params,
            tokens,
            model=run.model,
            protocol=protocol,
            window=run.config.evaluation.window,
            batch_size=run.config.evaluation.batch_size,
        )
        label = f"cold-{run.config.evaluation.window}" if protocol == "cold" else protocol
        print(
            f"{args.split} {label}: {loss.describe(run.vocabulary.unit)}, perplexity "
            f"{loss.perplexity:.3f} ({loss.count:,} {run.vocabulary.kind})"
        )
        results[label] = loss.to_dict()
    _merge_into_json(
        run.workdir / "evaluation.json",
        {args.split: {"step": run.step, "corpus": run.corpus, "losses": results}},
    )


def _sample_flags(parser: argparse.ArgumentParser) -> None:
    _checkpoint_flags(parser)
    parser.add_argument(
        "--prompt", action="append", help="text to continue; give it again for several"
    )
    parser.add_argument("--num_chars", type=_positive, default=1000, metavar="N")
    parser.add_argument("--temperature", type=_temperature, default=1.0, metavar="T")
    parser.add_argument("--num_samples", type=_positive, default=1, metavar="N")
    parser.add_argument("--seed", type=_natural, default=0, metavar="N")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the operands of products; default: as the run was trained",
    )
    _unk_flag(parser)


def _sample(args: argparse.Namespace, overrides: list[str]) -> None:
    run = _open_run(args, overrides)
    from charrnn_jax.generation.sampler import Sampler

    try:
        sampler = Sampler(run.params, model=run.model, vocabulary=run.vocabulary, dtype=args.dtype)
    except ValueError as error:
        raise UserError(f"--dtype={args.dtype}: {error}") from error
    prompts = [run.config.sample.prompt] if args.prompt is None else args.prompt
    start = time.perf_counter()
    with _hint_at_unk():
        samples = sampler.generate(
            [prompt for prompt in prompts for _ in range(args.num_samples)],
            num_chars=args.num_chars,
            temperature=args.temperature,
            seed=args.seed,
            unk=args.unk,
        )
    seconds = time.perf_counter() - start
    print(f"\n{'_' * 80}\n".join(sample.prompt + sample.text for sample in samples))
    num_chars = len(samples) * args.num_chars
    sys.stdout.flush()
    print(
        f"{'_' * 80}\nRun time: {seconds:.2f} s with compilation, "
        f"{num_chars / seconds:,.0f} characters/s",
        file=sys.stderr,
    )


def _score_flags(parser: argparse.ArgumentParser) -> None:
    _checkpoint_flags(parser)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", help="the text itself")
    text.add_argument("--text_file", metavar="FILE", help='"-": standard input')
    parser.add_argument("--per_char", action="store_true", help="also every character's bits")
    _unk_flag(parser)


def _score(args: argparse.Namespace, overrides: list[str]) -> None:
    run = _open_run(args, overrides)
    import numpy as np

    from charrnn_jax.evaluation.metrics import CrossEntropy
    from charrnn_jax.evaluation.protocols import character_losses

    with _hint_at_unk():
        tokens = run.vocabulary.encode(_given_text(args, run.vocabulary.kind), unk=args.unk)
    if len(tokens) < 2:
        raise UserError("nothing to score: the first character is context, so give two or more")
    losses = np.concatenate(
        list(
            character_losses(
                run.params, tokens, model=run.model, protocol="carried", window=1, batch_size=1
            )
        )
    )
    if args.per_char:
        for token, nats in zip(tokens[1:], losses, strict=True):
            print(f"{run.vocabulary.decode([token])!r}\t{nats / np.log(2):.4f} bits")
    loss = CrossEntropy(float(losses.sum(dtype=np.float64)), losses.size)
    print(
        f"{loss.describe(run.vocabulary.unit)}, perplexity {loss.perplexity:.3f} "
        f"({loss.count:,} {run.vocabulary.kind} behind the first, carried)"
    )


def _corpora(args: argparse.Namespace, overrides: list[str]) -> None:
    _reject(overrides)
    from charrnn_jax.data.corpora import (
        BUILT_IN,
        KNOWN_CORPORA,
        STDLIB_CHARS,
        cached_file,
        data_folder,
    )

    print(f"Corpora are looked for in {data_folder()} (set CHARRNN_DATA_DIR to change that)")
    for name, known in KNOWN_CORPORA.items():
        where = cached_file(name) or f"to be downloaded from {known.url}"
        print(f"  {name:14}{known.size:>12,} bytes  {where}\n{'':16}{known.licence}")
    print(
        f"  {BUILT_IN:14}{STDLIB_CHARS:>12,} chars  built in\n"
        f"{'':16}PSF licence; library source of the running Python"
    )


class Command(NamedTuple):
    """A command: what it does in a few words, its flags, and what runs it."""

    does: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], None]


COMMANDS = {
    "train": Command("train a model, or go on with a run (the default)", _run_flags, _train),
    "evaluate": Command("loss of a whole split, by protocol", _evaluate_flags, _evaluate),
    "sample": Command("generate text", _sample_flags, _sample),
    "score": Command("loss of a given text", _score_flags, _score),
    "corpora": Command("known corpora, and which are here", lambda parser: None, _corpora),
}

# --- arguments ----------------------------------------------------------------------------------


def _load_config(args: argparse.Namespace, overrides: list[str]) -> tuple[Any, Path]:
    """Returns the config with its overrides, checked, and the workdir."""
    if not args.config:
        raise UserError("--config is missing: give an experiment, --config=experiments/quick.py")
    from charrnn_jax.config import load_experiment, override, validate

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


def _open_run(args: argparse.Namespace, overrides: list[str]) -> Any:
    if args.workdir:
        _reject(overrides)
        workdir = Path(args.workdir).expanduser()
    elif args.config:
        workdir = _load_config(args, overrides)[1]
    else:
        raise UserError("which run? give --workdir=DIR, or the --config that it was trained with")
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.data.dataset import describe_corpus
    from charrnn_jax.run import load_run

    keep_compiled_programs()
    run = load_run(workdir, checkpoint=args.checkpoint)
    print(
        f"Run {workdir}, step {run.step:,}, trained on {describe_corpus(run.corpus)}",
        file=sys.stderr,
    )
    return run


def _reject(leftovers: list[str]) -> None:
    if leftovers:
        raise UserError(f"what is {leftovers[0]!r}? See charrnn --help")


@contextlib.contextmanager
def _hint_at_unk() -> Iterator[None]:
    from charrnn_jax.data.vocabulary import UnknownCharacterError

    try:
        yield
    except UnknownCharacterError as error:
        raise UserError(f"{error}; --unk=skip drops them") from error


def _given_text(args: argparse.Namespace, kind: str) -> str | bytes:
    from charrnn_jax.data.corpora import load_corpus

    if args.text_file is None:
        return args.text
    blocks: list[Any] = list(load_corpus(path=args.text_file).blocks(kind))
    return (b"" if kind == "bytes" else "").join(blocks)


def _merge_into_json(file: Path, splits: dict[str, Any]) -> None:
    """Adds losses to those that the file has of the same checkpoint; replaces any others."""
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(file.read_text()))
    for split, entry in splits.items():
        with contextlib.suppress(KeyError, TypeError):  # another shape: somebody else's
            if known[split]["step"] == entry["step"]:
                entry["losses"] = {**known[split]["losses"], **entry["losses"]}
    with replacing(file) as partial:
        partial.write_text(json.dumps({**known, **splits}, indent=2) + "\n")


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"charrnn: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
