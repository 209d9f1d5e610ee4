"""What `charrnn evaluate` prints beside the losses of a model: baselines, and both together."""

import argparse
from typing import TYPE_CHECKING, Any

from charrnn_jax.commands.arguments import positive, real
from charrnn_jax.errors import UserError
from charrnn_jax.messages import NOTES, show

if TYPE_CHECKING:
    import numpy as np

    from charrnn_jax.data.vocabulary import Vocabulary
    from charrnn_jax.evaluation.baselines import Baseline
    from charrnn_jax.evaluation.metrics import CrossEntropy
    from charrnn_jax.evaluation.ngram import KneserNey
    from charrnn_jax.evaluation.protocols import Protocol
    from charrnn_jax.workdir.run import Run

TUNED = -1.0  # as a weight: to be chosen
_FEWEST_TUNED = 20  # characters of training text that a weight can be chosen on


def baseline_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --baseline, --baseline_chars and --interpolate."""
    parser.add_argument(
        "--baseline",
        default="all",
        choices=("all", "kneser-ney", "none"),
        help="what to score beside the model: an n-gram model of the training text, and, with "
        "--protocol=all, compressors; default: all",
    )
    parser.add_argument(
        "--baseline_chars",
        type=positive,
        metavar="N",
        help="the n-gram model counts at most the last N characters of the training text; "
        "default: 5,000,000",
    )
    parser.add_argument(
        "--interpolate",
        nargs="?",
        type=_weight,
        const=TUNED,
        metavar="W",
        help="also score W times the model's probabilities plus 1 - W times those of the n-gram "
        "model; without W, it is chosen on the end of the training text",
    )


def show_loss(name: str, loss: "CrossEntropy", vocabulary: "Vocabulary", *, note: str = "") -> None:
    """Prints a loss in all units; the note says which part of a text was used."""
    show(
        f"{name}: {loss.describe(vocabulary.unit)}, perplexity {loss.describe_perplexity()} "
        f"({loss.count:,} {vocabulary.kind}{'; ' * bool(note)}{note})"
    )


def check_baselines(args: argparse.Namespace, train: "np.ndarray") -> bool:
    """Returns whether there is something to count for the baselines; a note says why not.

    Raises:
      UserError: --interpolate is not possible.
    """
    reason = ""
    num_counted = min(len(train), args.baseline_chars or len(train))
    if args.split == "train":
        reason = "the n-gram model would have counted the split that it is scored on"
    elif not len(train):
        reason = "the run has no training text to count"
    elif num_counted < _FEWEST_TUNED and args.interpolate == TUNED:
        reason = f"to choose the weight, {_FEWEST_TUNED} characters of training text are needed"
    if reason and args.interpolate is not None:
        raise UserError(f"--interpolate is not possible: {reason}")
    if reason and args.baseline != "none":
        NOTES.info(f"No baselines: {reason}")
    return not reason and (args.interpolate is not None or args.baseline != "none")


def show_baselines(
    args: argparse.Namespace,
    run: "Run",
    *,
    train: "np.ndarray",
    tokens: "np.ndarray",
    scored: list[tuple["Protocol", list["np.ndarray"]]],
) -> dict[str, dict[str, Any]]:
    """Prints the baselines of a split.

    Args:
      args: flags of the command.
      run: the run.
      train: [num_chars] ids of the training split.
      tokens: [1 + num_chars] ids of the evaluated split.
      scored: protocols, and with --interpolate the losses of the model under them, in pieces.

    Returns:
      What `evaluation.json` holds of them: {"baselines": {label: numbers}} and "interpolated".
    """
    from charrnn_jax.evaluation import baselines as known

    most = args.baseline_chars or known.MOST_COUNTED
    ngram, note = known.fit_ngram(train, vocabulary=run.vocabulary, most=most)
    results: dict[str, dict[str, Any]] = {}
    if args.baseline != "none":
        protocols = [protocol for protocol, _ in scored]
        is_read = args.protocol in ("all", "dynamic")
        baselines = known.ngram_baselines(
            ngram, tokens, protocols=protocols, is_read=is_read, note=note and f"counts {note}"
        )
        for row in baselines:
            show_loss(f"{args.split} {row.label}", row.loss, run.vocabulary, note=row.note)
        if args.baseline == "all" and args.protocol == "all":
            compressed = known.compressor_baselines(train, tokens, vocabulary=run.vocabulary)
            _show_compressors(args.split, compressed, run.vocabulary)
            baselines += compressed
        results["baselines"] = {row.label: row.to_dict() for row in baselines}
    if args.interpolate is not None:
        results["interpolated"] = _show_interpolated(
            args, run, ngram=ngram, train=train[-most:], tokens=tokens, scored=scored
        )
    return results


def _show_compressors(split: str, compressed: list["Baseline"], vocabulary: "Vocabulary") -> None:
    """Prints the best compressor, and the others in a few words."""
    if not compressed:
        return
    best, *others = compressed
    note = ", ".join(f"{row.label} {row.loss.bits_per_char:.4f} bits" for row in others)
    note = "; ".join(filter(None, [note, best.note]))
    show_loss(f"{split} compressor {best.label}", best.loss, vocabulary, note=note)


def _show_interpolated(
    args: argparse.Namespace,
    run: "Run",
    *,
    ngram: "KneserNey",
    train: "np.ndarray",
    tokens: "np.ndarray",
    scored: list[tuple["Protocol", list["np.ndarray"]]],
) -> dict[str, Any]:
    """Prints the losses of the model and the n-gram model together, and returns them as data."""
    import numpy as np

    from charrnn_jax.evaluation.baselines import matching_losses
    from charrnn_jax.evaluation.interpolation import Tuner, interpolate
    from charrnn_jax.evaluation.protocols import total

    tuner, results = None, {}
    for protocol, pieces in scored:
        counted = matching_losses(ngram, tokens, protocol)
        if counted is None:
            continue
        weight, note = args.interpolate, f"weight of the model {args.interpolate:.3f}"
        if weight == TUNED:
            tuner = tuner or Tuner.make(
                train, order=ngram.order, vocabulary_size=run.vocabulary.size
            )
            weight = tuner.weight(run.params, model=run.model, protocol=protocol)
            note = f"weight of the model {weight:.3f}, chosen on the end of train"
        loss = total([interpolate(np.concatenate(pieces), counted, weight=weight)])
        label = f"{protocol.label} interpolated with kneser-ney-{ngram.order}"
        show_loss(f"{args.split} {label}", loss, run.vocabulary, note=note)
        results[protocol.label] = {**loss.to_dict(), "weight": weight}
    return results


def _weight(text: str) -> float:
    """Parses a number from 0 to 1."""
    weight = real(text)
    if weight > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return weight
