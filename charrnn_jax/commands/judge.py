"""`charrnn judge`: generates text, or reads one, and judges it by real text."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    moved_text_flag,
    natural,
    only_warning,
    open_run,
    path_text,
    positive,
    read_text,
)
from charrnn_jax.commands.choices import CHOICES
from charrnn_jax.errors import UserError
from charrnn_jax.messages import NOTES, show

if TYPE_CHECKING:
    from charrnn_jax.data.vocabulary import Vocabulary
    from charrnn_jax.evaluation.samples import Judged, Judgement
    from charrnn_jax.workdir.run import Run

_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "no_repeat")
_DEFAULTS: list[dict[str, Any]] = [
    *({"temperature": temperature} for temperature in (0.5, 0.8, 1.0)),
    {"temperature": 1.0, "top_p": 0.9},
]
_LABEL, _COLUMN = 20, 16  # widths in the table
_MOST_COLUMNS = 4  # groups beside the real text
_QUOTED = 60  # characters of the longest copied span that are shown


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the run and of the texts."""
    checkpoint_flags(parser)
    parser.add_argument(
        "--setting",
        action="append",
        type=_setting,
        metavar="NAME=X,...",
        help=f"how to draw a group of texts, of {', '.join(_SETTINGS)}; may be repeated; default: "
        "temperatures 0.5, 0.8 and 1, and top_p=0.9",
    )
    parser.add_argument(
        "--text_file",
        type=path_text,
        metavar="FILE",
        help='judge the beginning of this text instead; "-": standard input',
    )
    parser.add_argument("--prompt", default="", help="text that every text continues")
    parser.add_argument("--num_chars", type=positive, default=2000, metavar="N")
    parser.add_argument(
        "--num_samples", type=positive, default=8, metavar="N", help="texts in a group"
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the table and the verdicts; those of generated texts are kept in `judgement.json`."""
    if args.text_file is not None and (args.setting or args.prompt):
        raise UserError("--text_file is judged as it is: leave --setting and --prompt out")
    trained = open_run(args, overrides)
    from charrnn_jax.evaluation.samples import SHORTEST, judge, real_blocks
    from charrnn_jax.workdir.judgement import JUDGEMENT_FILE, save_judgement

    if args.num_chars < SHORTEST:
        raise UserError(f"--num_chars={args.num_chars} is too short to judge: at least {SHORTEST}")
    splits = trained.load_dataset(args.path).splits
    for split in ("train", "validation"):
        if not len(splits[split]):
            raise UserError(f"the run in {trained.workdir} has no {split} split to judge by")
    if trained.imported:
        NOTES.info("The text that the model was trained on is not known: --path stands for it")
    if trained.origin:
        NOTES.info("Copies of the text that the run was fine-tuned from are not found")
    vocabulary = trained.vocabulary
    training_text, real_text = map(vocabulary.decode, (splits["train"], splits["validation"]))
    if args.text_file is not None:
        name = "standard input" if args.text_file == "-" else args.text_file
        groups = {name: _read(args, vocabulary)}
    else:
        if vocabulary.kind == "characters":  # before texts are generated in vain
            real_blocks(real_text, num_chars=args.num_chars, num_texts=args.num_samples)
        groups = _generate(args, trained)
    judgement = judge(groups, training_text=training_text, real_text=real_text, seed=args.seed)
    if args.text_file is None and not trained.imported:  # the report knows the text of the run
        file = trained.workdir / JUDGEMENT_FILE
        with only_warning(file, remedy="what was found is only printed"):
            save_judgement(trained, judgement, prompt=args.prompt)
    if args.json:
        show(json.dumps(asdict(judgement)))
    else:
        _show_table(judgement, training_text)


def _setting(text: str) -> dict[str, Any]:
    """temperature=0.8,top_k=5 -> {"temperature": 0.8, "top_k": 5}"""
    settings = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _SETTINGS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not a setting; they are {', '.join(_SETTINGS)}"
            )
        settings[name] = CHOICES[name][0](value)
    return settings


def _generate(args: argparse.Namespace, trained: "Run") -> dict[str, list[str]]:
    """Returns the texts of each setting, without the prompt.

    Bytes may end inside a character: what is left of it is dropped.
    """
    from charrnn_jax.generation.choice import make_rules
    from charrnn_jax.generation.sampler import Sampler

    sampler = Sampler(trained.params, model=trained.model, vocabulary=trained.vocabulary)
    by_name = {
        ", ".join(f"{name} {value:g}" for name, value in settings.items()): make_rules(
            trained.vocabulary, **settings
        )
        for settings in args.setting or _DEFAULTS
    }
    prompts = [args.prompt] * args.num_samples
    return {
        name: [
            sample.text.rstrip("\ufffd") if trained.vocabulary.kind == "bytes" else sample.text
            for sample in sampler.generate(
                prompts, num_chars=args.num_chars, seed=args.seed, rules=rules
            )
        ]
        for name, rules in by_name.items()
    }


def _read(args: argparse.Namespace, vocabulary: "Vocabulary") -> list[str]:
    """Returns the beginning of the file, in texts of --num_chars, or of its length if shorter."""
    from charrnn_jax.evaluation.samples import cut

    text = read_text(args.text_file, kind=vocabulary.kind)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return cut(text, min(args.num_chars, len(text)) or 1)[: args.num_samples]


def _show_table(judgement: "Judgement", training_text: str) -> None:
    """Prints the figures with their intervals, what the signs mean, and the verdicts."""
    groups = list(judgement.groups.items())
    for start in range(0, len(groups), _MOST_COLUMNS):
        _show_columns(judgement.real, dict(groups[start : start + _MOST_COLUMNS]))
        show()
    show(
        "+-: half the 95% interval. < and >: below or above that of real text, "
        f"{judgement.num_texts} of {judgement.num_blocks} blocks of\n{judgement.num_chars:,} "
        "characters. Copied: stands in the training text. Distinct: of the first "
        f"{judgement.num_words} words.\n"
    )
    for name, judged in (("real text", judgement.real), *groups):
        reasons = f" ({'; '.join(judged.reasons)})" if judged.reasons else ""
        verdict = judged.verdict if name in judgement.groups else "for comparison"
        show(f"{name}: {verdict}{reasons}")
        place, length = judged.longest.place, judged.longest.length
        quoted = training_text[place : place + min(length, _QUOTED)]
        dots = "..." if length > _QUOTED else ""
        show(f"  longest copy: {length:,} characters, at {place:,} of train: {quoted!r}{dots}")


def _show_columns(real: "Judged", groups: dict[str, "Judged"]) -> None:
    from charrnn_jax.evaluation.samples import FIGURES, STRETCH

    headings = [name.split(", ") for name in ("real text", *groups)]
    for lines in zip_longest(*headings, fillvalue=""):
        cells = (line[1 - _COLUMN :].rjust(_COLUMN - 1) + " " for line in lines)
        show(f"{' ' * _LABEL}{''.join(cells)}".rstrip())
    columns = real, *groups.values()
    for name, display in FIGURES.items():
        usual = real.figures[name]
        cells = (judged.figures[name].describe(display, real=usual) for judged in columns)
        show(_line(display.label, cells))
    if len(real.loss_by_distance) < 2:
        return
    show("n-gram nats/char in characters")
    for index, usual in enumerate(real.loss_by_distance):
        label = f"  {STRETCH * index:,} to {STRETCH * (index + 1):,}"
        cells = (judged.loss_by_distance[index].describe(real=usual) for judged in columns)
        show(_line(label, cells))


def _line(label: str, cells: Iterable[str]) -> str:
    return f"{label:{_LABEL}}{''.join(cell.ljust(_COLUMN) for cell in cells)}".rstrip()
