"""`charrnn score`: computes the loss of a given text, and shows it character by character."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    hint_at_unk,
    open_run,
    path,
    path_text,
    read_text,
    unk_flag,
)
from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.messages import NOTES, show

if TYPE_CHECKING:
    import numpy as np

    from charrnn_jax.workdir.run import Run

_NUM_LIKELIEST = 5  # characters that a page lists for each prediction


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the checkpoint and of the text."""
    checkpoint_flags(parser)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", help="text to score")
    text.add_argument(
        "--text_file",
        type=path_text,
        metavar="FILE",
        help='file to score; "-": standard input',
    )
    parser.add_argument("--per_char", action="store_true", help="print the bits of each character")
    parser.add_argument(
        "--html",
        type=path,
        metavar="FILE",
        help="write a page with the text, each character coloured by its bits",
    )
    parser.add_argument(
        "--beside",
        type=path,
        metavar="DIR",
        help="with --html: workdir of another run, whose best checkpoint is shown, too",
    )
    unk_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the loss, and writes the page if it is asked for."""
    if args.beside and not args.html:
        raise UserError("--beside compares two runs on a page: give --html=FILE, too")
    trained = open_run(args, overrides)
    import numpy as np

    from charrnn_jax.evaluation.metrics import CrossEntropy
    from charrnn_jax.evaluation.protocols import Carried, char_losses
    from charrnn_jax.workdir.run import load_run

    text = args.text
    if text is None:
        text = read_text(args.text_file, kind=trained.vocabulary.kind)
    read = []
    for each in [trained, *([load_run(args.beside)] if args.beside else [])]:
        tokens = _encode(text, each, unk=args.unk)
        losses = char_losses(each.params, tokens, model=each.model, protocol=Carried())
        read.append((each, tokens, losses))
    if args.html:
        _write_page(args.html, read)
    _, tokens, losses = read[0]
    if args.per_char:
        for token, nats in zip(tokens[1:], losses, strict=True):
            show(f"{trained.vocabulary.decode([token])!r}\t{nats / np.log(2):.4f} bits")
    loss = CrossEntropy(float(losses.sum(dtype=np.float64)), losses.size)
    show(
        f"{loss.describe(trained.vocabulary.unit)}, perplexity {loss.describe_perplexity()} "
        f"({loss.count:,} {trained.vocabulary.kind} after the first, carried)"
    )


def _encode(text: str | bytes, run: "Run", *, unk: str) -> "np.ndarray":
    if isinstance(text, bytes) and run.vocabulary.kind == "characters":
        raise UserError(f"{run.workdir} reads characters, and the other run bytes: give --text")
    try:
        with hint_at_unk():
            tokens = run.vocabulary.encode(text, unk=unk)
    except UserError as error:
        raise UserError(f"{run.workdir}: {error}") from error
    if len(tokens) < 2:
        raise UserError("nothing to score: the first character is context, so give two or more")
    return tokens


def _write_page(file: Path, read: "Sequence[tuple[Run, np.ndarray, np.ndarray]]") -> None:
    """Writes the page of the runs that have read a text, each with its tokens and losses."""
    import numpy as np

    from charrnn_jax.evaluation.surprise import by_character, find_likeliest
    from charrnn_jax.reports.surprise.page import MOST_WITH_LIKELIEST, Reader, make_surprise_page

    workdirs = [run.workdir.resolve() for run, _, _ in read]
    are_alike = len({workdir.name for workdir in workdirs}) < len(workdirs)
    readers, texts = [], []
    for workdir, (run, tokens, losses) in zip(workdirs, read, strict=True):
        if not np.isfinite(losses).all():
            raise UserError(f"{run.workdir} has losses that are not finite, which no page can show")
        vocabulary, likeliest = run.vocabulary, None
        # What is likely is no character if tokens are bytes.
        if vocabulary.kind == "characters" and len(tokens) <= MOST_WITH_LIKELIEST:
            num = min(_NUM_LIKELIEST, vocabulary.size)
            likeliest = find_likeliest(run.params, tokens, model=run.model, num=num)
        symbols = [vocabulary.decode([i]) for i in range(vocabulary.size)] if likeliest else []
        text, losses = by_character(losses, tokens, vocabulary=vocabulary)
        name = f"{workdir if are_alike else workdir.name}, step {run.step:,}"
        readers.append(Reader(name, losses, likeliest, symbols))
        texts.append(text)
    if texts[0] != texts[-1]:
        raise UserError(
            "the two runs know different characters, so they do not read the same text: leave out "
            "what one of them does not know"
        )
    with replacing(file) as partial:
        page = make_surprise_page(texts[0], readers, title="Surprise")
        partial.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
    NOTES.info(f"Wrote {file}")
