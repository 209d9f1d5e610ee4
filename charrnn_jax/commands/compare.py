"""`charrnn compare`: says whether runs differ on the same text, by how much, and where."""

import argparse
import json
from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from charrnn_jax.commands.arguments import moved_text_flag, path, path_text, reject
from charrnn_jax.errors import UserError
from charrnn_jax.messages import NOTES, show
from charrnn_jax.registry import PROTOCOLS

if TYPE_CHECKING:
    from charrnn_jax.evaluation.breakdown import Group
    from charrnn_jax.workdir.compare import Comparison, Pair

# Shown without --verbose, so that the answer fits on a screen.
_KINDS = ("kind of character", "position in the word", "position in the window")
_EXCERPTS, _PAIRS, _WIDTH = 5, 6, 100


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the runs, and the flags of the checkpoint, the split and the protocol."""
    parser.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="workdir of a run; two or more"
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        type=path_text,
        metavar="FILE",
        help="experiment that registers names of a run's config; may be repeated",
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|latest|STEP",
        help="checkpoint of each run; default: best",
    )
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument(
        "--protocol",
        default="carried",
        metavar="NAME",
        help=f"{', '.join(PROTOCOLS)}, or one that the experiment registers; default: carried",
    )
    parser.add_argument("--json", action="store_true", help="print all results as JSON")
    parser.add_argument(
        "--html", type=path, metavar="FILE", help="also write a page, with curves of the runs"
    )
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the comparison; --verbose prints all groups, passages and pairs."""
    reject(overrides)
    if len(args.runs) < 2:
        raise UserError("a comparison needs two runs: charrnn compare RUN RUN")
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.experiment import register_file
    from charrnn_jax.reports.comparison import write_comparison
    from charrnn_jax.workdir.compare import compare
    from charrnn_jax.workdir.run import load_run

    for file in args.config:
        register_file(file.partition(":")[0])
    keep_compiled_programs()
    runs = [load_run(workdir, checkpoint=args.checkpoint) for workdir in args.runs]
    if not args.json:
        NOTES.info(f"Text: {runs[0].corpus.describe()}")
    found = compare(*runs, split=args.split, protocol=args.protocol, path=args.path)
    if args.json:
        show(json.dumps(found.to_dict(), indent=2))
    else:
        for line in _report(found, is_long=args.verbose):
            show(line)
    if args.html:
        write_comparison(found, runs, args.html)
        NOTES.info(f"Page: {args.html}")


def _report(found: "Comparison", *, is_long: bool) -> Iterator[str]:
    """Yields the lines of the report; a short one has the details of the best two runs only."""
    from charrnn_jax.workdir.compare import COMPARES_RUNS, LETTERS

    yield f"{found.split} {found.protocol}, {found.num_chars:,} {found.noun}"
    yield f"   {'loss in nats/' + found.unit} ± its standard error"
    ranked = sorted(range(len(found.runs)), key=lambda number: found.runs[number].loss)
    for number in ranked:
        each = found.runs[number]
        error = f"{each.loss:.4f} ± {each.standard_error:.4f}"
        yield f"{LETTERS[number]}  {error}   {each.name}, step {each.step:,}"
    yield ""
    pairs = found.ranked_pairs()
    for pair in pairs if is_long else pairs[:_PAIRS]:
        yield from wrap(pair.describe(LETTERS, unit=found.unit), _WIDTH)
    if len(pairs) > _PAIRS and not is_long:
        yield f"... and {len(pairs) - _PAIRS} more pairs: --verbose shows all"
    for pair in pairs if is_long else pairs[:1]:
        yield from _details(pair, found, is_long=is_long)
    yield ""
    yield from wrap(COMPARES_RUNS, _WIDTH)


def _details(pair: "Pair", found: "Comparison", *, is_long: bool) -> Iterator[str]:
    from charrnn_jax.workdir.compare import LETTERS

    if not pair.excerpts:  # no character has another loss
        return
    names = LETTERS[pair.first], LETTERS[pair.second]
    yield from wrap(pair.describe_power(LETTERS, unit=found.unit), _WIDTH)
    yield ""
    kinds: dict[str, list[Group]] = {}
    for group in pair.groups:
        kinds.setdefault(group.kind, []).append(group)
    for kind, groups in kinds.items():
        if kind == "kind of character":
            groups.sort(key=lambda group: -abs(group.contribution))
        if is_long or kind in _KINDS:
            yield from _table(groups, names, noun=found.noun, with_share=pair.is_real)
    yield f"passages that differ most: {' - '.join(names)} in nats, position, [[text]]"
    for excerpt in pair.excerpts if is_long else pair.excerpts[:_EXCERPTS]:
        before, passage, after = (
            repr(text)[1:-1] for text in (excerpt.before, excerpt.passage, excerpt.after)
        )
        yield f"{excerpt.nats:+8.2f}{excerpt.start:>11,}  {before}[[{passage}]]{after}"


def _table(
    groups: "list[Group]", names: tuple[str, str], *, noun: str, with_share: bool
) -> Iterator[str]:
    """Yields the rows of one kind of group; shares of no difference would mean nothing."""
    first, second = names
    difference = f"{first} - {second} ± error"
    share = f"{'share':>8}" * with_share
    yield f"{groups[0].kind:<24}{noun:>10}{first:>9}{second:>9}{difference:>20}{share}"
    for group in groups:
        losses = "".join(f"{loss:9.4f}" for loss in group.losses)
        error = "n/a   " if group.standard_error is None else f"{group.standard_error:.4f}"
        change = f"{group.losses[0] - group.losses[1]:+.4f} ± {error}"
        if with_share and group.share is not None:
            share = f"{round(group.share, 2) + 0:8.0%}"  # no "-0%"
        yield f"  {group.name:<22}{group.num_chars:>10,}{losses}{change:>20}{share}"
