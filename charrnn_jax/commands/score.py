"""`charrnn score`: computes the loss of a given text."""

import argparse

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    hint_at_unk,
    open_run,
    path_text,
    read_text,
    unk_flag,
)
from charrnn_jax.errors import UserError
from charrnn_jax.messages import show


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
    unk_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the loss."""
    trained = open_run(args, overrides)
    import numpy as np

    from charrnn_jax.evaluation.metrics import CrossEntropy
    from charrnn_jax.evaluation.protocols import Carried

    text = args.text
    if text is None:
        text = read_text(args.text_file, kind=trained.vocabulary.kind)
    with hint_at_unk():
        tokens = trained.vocabulary.encode(text, unk=args.unk)
    if len(tokens) < 2:
        raise UserError("nothing to score: the first character is context, so give two or more")
    losses = np.concatenate(list(Carried().losses(trained.params, tokens, model=trained.model)))
    if args.per_char:
        for token, nats in zip(tokens[1:], losses, strict=True):
            show(f"{trained.vocabulary.decode([token])!r}\t{nats / np.log(2):.4f} bits")
    loss = CrossEntropy(float(losses.sum(dtype=np.float64)), losses.size)
    show(
        f"{loss.describe(trained.vocabulary.unit)}, perplexity {loss.describe_perplexity()} "
        f"({loss.count:,} {trained.vocabulary.kind} after the first, carried)"
    )
