"""`charrnn sample`: generates text."""

import argparse
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    hint_at_unk,
    moved_text_flag,
    natural,
    open_run,
    path_text,
    positive,
    read_prompt,
    real,
    unk_flag,
)
from charrnn_jax.commands.choices import CHOICES
from charrnn_jax.errors import UserError
from charrnn_jax.messages import NOTES, show

# Flags that do not apply to `--baseline`, beside those of `CHOICES`, and their defaults.
_NOT_OF_BASELINE: dict[str, Any] = {
    "rule": [],
    "stop": [],
    "best_of": 1,
    "dtype": None,
    "clamp": [],
    "stream": False,
    "interactive": False,
    "adapt": False,
    "novel": None,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the prompts, of how text is drawn, and of the output."""
    checkpoint_flags(parser)
    parser.add_argument(
        "--prompt", action="append", help="text to continue; repeat it for several texts"
    )
    parser.add_argument(
        "--prompt_file",
        type=path_text,
        metavar="FILE",
        help='file with the text to continue; "-": standard input',
    )
    parser.add_argument("--num_chars", type=positive, default=1000, metavar="N")
    for name, (kind, default, does) in CHOICES.items():
        metavar = {natural: "N", real: "X", str: "TEXT"}[kind]
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=does)
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="NAME",
        help="rule that the experiment file registers; may be repeated",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a text before this string; may be repeated",
    )
    parser.add_argument(
        "--best_of", type=positive, default=1, metavar="N", help="show the most likely of N texts"
    )
    parser.add_argument("--num_samples", type=positive, default=1, metavar="N")
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="number type of the operands of matrix products; default: that of the run",
    )
    unk_flag(parser)
    parser.add_argument(
        "--clamp",
        action="extend",
        type=_clamped_units,
        default=[],
        metavar="LAYER:UNIT=VALUE,...",
        help="hold hidden units at a value; layers and units are counted from 0; may be repeated",
    )
    parser.add_argument(
        "--novel",
        type=positive,
        metavar="N",
        help="write only texts that copy no more than N characters in a row from the training text",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="let an n-gram model of the run's training text write instead, for comparison",
    )
    parser.add_argument(
        "--order",
        type=natural,
        metavar="N",
        help="characters of context of the n-gram model; default: 6",
    )
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="let the weights learn from the prompt first, as in dynamic evaluation",
    )
    moved_text_flag(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--stream", action="store_true", help="show one text while it is written")
    shown.add_argument("--json", action="store_true", help="print one line of JSON for each text")
    shown.add_argument(
        "--interactive", action="store_true", help="write in turns with the model, go back, branch"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Opens the run and generates."""
    _check_flags(args)
    trained = open_run(args, overrides)
    if args.baseline:
        return _sample_baseline(args, trained)
    from charrnn_jax.generation.sampler import Sampler

    prompts = _given_prompts(args, trained)
    params = _adapted(args, trained, prompts) if args.adapt else trained.params
    try:
        sampler = Sampler(
            params, model=trained.model, vocabulary=trained.vocabulary, dtype=args.dtype
        )
    except ValueError as error:
        raise UserError(f"--dtype={args.dtype}: {error}") from error
    sampler = sampler.with_clamp(dict(args.clamp))
    settings = {name: getattr(args, name) for name in CHOICES}
    settings |= {"num_chars": args.num_chars, "stop": args.stop, "own": args.rule}
    if args.interactive:
        from charrnn_jax.commands.interactive import Session

        return Session(sampler, settings, seed=args.seed, unk=args.unk).run(prompts)
    prompts = _repeated(prompts, args, trained)
    settings |= {"seed": args.seed, "unk": args.unk}
    start = time.perf_counter()
    with hint_at_unk():
        if args.stream:
            num_chars = _stream(sampler, prompts, settings)
        else:
            samples, copied = _generate(sampler, prompts, settings, args=args, trained=trained)
            num_chars = args.best_of * sum(sample.num_chars for sample in samples)
            _show(samples, trained.vocabulary, as_json=args.json, copied=copied)
            cut = sum(sample.finish == "length" for sample in samples)
            if args.pattern and cut:
                warnings.warn(
                    f"{cut} of {len(samples)} texts ended at --num_chars={args.num_chars}, perhaps "
                    "before they matched the pattern",
                    stacklevel=1,
                )
    _show_time(start, num_chars, including="compilation")


def _generate(
    sampler: Any,
    prompts: list[str],
    settings: dict[str, Any],
    *,
    args: argparse.Namespace,
    trained: Any,
) -> tuple[list[Any], list[list[Any]]]:
    """Returns (samples, with --novel the copied spans of each)."""
    if args.novel is None:
        return sampler.generate(prompts, best_of=args.best_of, **settings), []
    from charrnn_jax.generation.novel import generate_novel

    train = trained.load_dataset(args.path).splits["train"]
    text = trained.vocabulary.decode(train)
    novel = generate_novel(
        sampler,
        prompts,
        training_text=text,
        most_copied=args.novel,
        best_of=args.best_of,
        **settings,
    )
    return [one.sample for one in novel], [one.copied for one in novel]


def _sample_baseline(args: argparse.Namespace, trained: Any) -> None:
    """Counts the training text of the run, and lets the n-gram model write."""
    from charrnn_jax.evaluation.baselines import ORDER, fit_ngram
    from charrnn_jax.generation.counted import generate_counted

    prompts = _repeated(_given_prompts(args, trained), args, trained)
    start = time.perf_counter()
    train = trained.load_dataset(args.path).splits["train"]
    if not len(train):
        raise UserError(f"the run in {trained.workdir} has no training text to count")
    order = ORDER if args.order is None else args.order
    ngram, part = fit_ngram(train, vocabulary=trained.vocabulary, order=order)
    NOTES.info(f"Written by an n-gram model, kneser-ney-{order}, of {part or 'the training text'}")
    with hint_at_unk():
        samples = generate_counted(
            ngram,
            prompts,
            vocabulary=trained.vocabulary,
            num_chars=args.num_chars,
            temperature=args.temperature,
            seed=args.seed,
            unk=args.unk,
        )
    _show(samples, trained.vocabulary, as_json=args.json)
    _show_time(start, sum(sample.num_chars for sample in samples), including="counting")


def _adapted(args: argparse.Namespace, trained: Any, prompts: list[str] | None) -> Any:
    """Returns the parameters after they have learned from the prompt."""
    from charrnn_jax.workdir.tuned import tuned_dynamic

    if prompts is None or len(prompts) != 1:
        raise UserError("--adapt learns from one prompt: give one --prompt or --prompt_file")
    with hint_at_unk():
        tokens = trained.vocabulary.encode(prompts[0], unk=args.unk)
    protocol = tuned_dynamic(trained)
    if len(tokens) <= protocol.segment:
        raise UserError(
            f"the prompt has {len(tokens)} {trained.vocabulary.kind}: --adapt learns from more "
            f"than {protocol.segment}; give a longer text, for example with --prompt_file"
        )
    train = trained.load_dataset(args.path).splits["train"]
    fitted = protocol.fit(trained.params, train, model=trained.model)
    return fitted.adapt(trained.params, tokens, model=trained.model)


def _given_prompts(args: argparse.Namespace, trained: Any) -> list[str] | None:
    if args.prompt_file is not None:
        return [read_prompt(args.prompt_file, kind=trained.vocabulary.kind)]
    return args.prompt


def _repeated(prompts: list[str] | None, args: argparse.Namespace, trained: Any) -> list[str]:
    """Returns the prompts, or the one of the config, `--num_samples` times each."""
    if prompts is None:
        prompts = [trained.config.sample.prompt]
    return [prompt for prompt in prompts for _ in range(args.num_samples)]


def _show_time(start: float, num_chars: int, *, including: str) -> None:
    seconds = time.perf_counter() - start
    show(
        f"{'_' * 80}\nRun time: {seconds:.2f} s including {including}, "
        f"{num_chars / seconds:,.0f} characters/s",
        to="stderr",
    )


def _clamped_units(text: str) -> list[tuple[tuple[int, int], float]]:
    """1:217=0.9,0:3=-1 -> [((1, 217), 0.9), ((0, 3), -1.0)]"""
    clamp = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+):(\d+)=(.+)", part.strip(), re.ASCII)
        try:
            layer, unit, value = match.groups() if match else ("", "", "")
            clamp.append(((int(layer), int(unit)), float(value)))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not LAYER:UNIT=VALUE, such as 0:217=0.9"
            ) from error
    return clamp


def _check_flags(args: argparse.Namespace) -> None:
    units = [unit for unit, _ in args.clamp]
    for layer, unit in units:
        if units.count((layer, unit)) > 1:
            raise UserError(f"--clamp has {layer}:{unit} twice: give each unit once")
    if args.baseline:
        without = {name: default for name, (_, default, _) in CHOICES.items()}
        without |= _NOT_OF_BASELINE
        for name in sorted(without.keys() - {"temperature"}):
            if getattr(args, name) != without[name]:
                raise UserError(f"--{name} is not for --baseline: leave one of them out")
    elif args.order is not None:
        raise UserError("--order is for --baseline only: give --baseline, too, or leave it out")
    elif args.path and not args.adapt and args.novel is None:
        raise UserError("--path is for --adapt, --baseline and --novel: give one, or leave it out")
    if args.novel is not None and (args.stream or args.interactive):
        flag = "--stream" if args.stream else "--interactive"
        raise UserError(f"--novel judges whole texts: leave {flag} out")
    if args.prompt is not None and args.prompt_file is not None:
        raise UserError("--prompt and --prompt_file were both given: give only one of them")
    if args.interactive and args.prompt_file == "-":
        raise UserError("--interactive needs standard input for itself: give --prompt_file=FILE")
    if args.interactive and sys.stdin is None:
        raise UserError("--interactive needs standard input, which is closed")
    several = len(args.prompt or ()) > 1 or args.num_samples > 1 or args.best_of > 1
    if several and (args.stream or args.interactive):
        flag = "--stream" if args.stream else "--interactive"
        raise UserError(f"{flag} shows one text: give one --prompt, no --num_samples, no --best_of")


def _stream(sampler: Any, prompts: list[str], settings: dict[str, Any]) -> int:
    pieces = sampler.stream(prompts, **settings)
    show(_as_shown(prompts[0], sampler.vocabulary), end="", flush=True)
    num_chars = 0
    for (piece,) in pieces:
        show(piece, end="", flush=True)
        num_chars += len(piece)
    show(flush=True)
    return num_chars


def _as_shown(prompt: str, vocabulary: Any) -> str:
    """Returns a prompt as printed: bytes that are not UTF-8 look as they do in generated text."""
    is_bytes = vocabulary.kind == "bytes"
    return vocabulary.decode(vocabulary.encode(prompt)) if is_bytes else prompt


def _show(
    samples: list[Any], vocabulary: Any, *, as_json: bool, copied: Sequence[list[Any]] = ()
) -> None:
    """Prints the samples; in JSON with their copied spans, if they are known."""
    samples = [sample._replace(prompt=_as_shown(sample.prompt, vocabulary)) for sample in samples]
    if as_json:
        for sample, spans in zip_longest(samples, copied):
            fields = sample._asdict()
            if spans is not None:
                fields["copied"] = [asdict(span) for span in spans]
            if math.isnan(sample.nats_per_char):  # an empty text; JSON has no NaN
                fields["nats_per_char"] = None
            show(json.dumps(fields), flush=True)
    else:
        separator = f"\n{'_' * 80}\n"
        texts = separator.join(sample.prompt + sample.text for sample in samples)
        show(texts, flush=True)
