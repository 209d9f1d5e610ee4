"""`charrnn evaluate`: computes the loss on a whole split, under one or more protocols."""

import argparse
import contextlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn_jax.commands.arguments import checkpoint_flags, moved_text_flag, open_run
from charrnn_jax.commands.baselines import (
    baseline_flags,
    check_baselines,
    show_baselines,
    show_loss,
)
from charrnn_jax.errors import UserError, file_error
from charrnn_jax.files import replacing
from charrnn_jax.messages import NOTES
from charrnn_jax.reading import read_json
from charrnn_jax.registry import PROTOCOLS

if TYPE_CHECKING:
    from charrnn_jax.data.tokens import Splits


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the checkpoint, the split and the protocol."""
    checkpoint_flags(parser)
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument(
        "--protocol",
        default="all",
        metavar="NAME",
        help=f"{', '.join(PROTOCOLS)}, or one that the experiment registers; default: all",
    )
    baseline_flags(parser)
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the losses and writes them to `evaluation.json`, if the workdir can be written."""
    trained = open_run(args, overrides)
    from charrnn_jax.evaluation.protocols import make_protocol, protocols_in_all, score, total

    settings = trained.config.evaluation
    names = protocols_in_all() if args.protocol == "all" else [args.protocol]
    protocols = [make_protocol(settings, name) for name in names]
    dataset = trained.load_dataset(args.path)
    tokens = dataset.splits.with_context(args.split)
    if len(tokens) < 2:
        raise UserError(f"the run in {trained.workdir} has no {args.split} split to evaluate")
    train = dataset.splits["train"]
    if args.split != "train" and not trained.imported:
        _warn_of_contamination(args.split, dataset.splits)
    has_baselines = check_baselines(args, train)
    results, scored = {}, []
    for protocol in protocols:
        losses = score(trained.params, tokens, model=trained.model, protocol=protocol)
        kept = list(losses) if args.interpolate is not None else []
        loss = total(kept or losses)
        show_loss(f"{args.split} {protocol.label}", loss, trained.vocabulary)
        results[protocol.label] = loss.to_dict()
        scored.append((protocol, kept))
    file = trained.workdir / "evaluation.json"
    entry = {"step": trained.step, "corpus": asdict(dataset.identity()), "losses": results}
    if has_baselines:
        entry |= show_baselines(args, trained, train=train, tokens=tokens, scored=scored)
    try:
        _merge_into_json(file, {args.split: entry})
    except OSError as error:  # the losses were printed, so the command did its work
        remedy = "the losses are printed only"
        warnings.warn(str(file_error(error, path=file, doing="write", remedy=remedy)), stacklevel=1)


def _warn_of_contamination(split: str, splits: "Splits") -> None:
    from charrnn_jax.evaluation.contamination import ALARMING, LENGTH, shared_ngrams

    share = shared_ngrams(splits[split], splits["train"])
    if share > ALARMING:
        NOTES.warning(
            f"charrnn: warning: {share:.1%} of the {LENGTH}-grams of the {split} split stand in "
            "the training text: its loss says little about new text"
        )


def _merge_into_json(file: Path, splits: dict[str, Any]) -> None:
    """Adds losses to the ones of the same checkpoint and text in the file, and replaces others."""
    from charrnn_jax.workdir.metadata import digest_of

    known: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # missing, or damaged
        known = read_json(file, dict[str, Any], remedy="delete it")
    for split, entry in splits.items():
        # An entry that lacks something was not written by this command.
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            old = known[split]
            is_intact = old.get("sha256", digest_of(old)) == digest_of(old)
            if is_intact and all(old[name] == entry[name] for name in ("step", "corpus")):
                for kind in ("losses", "baselines", "interpolated"):
                    if kind in old or kind in entry:
                        entry[kind] = {**old.get(kind, {}), **entry.get(kind, {})}
        entry["sha256"] = digest_of(entry)
    with replacing(file) as partial:
        partial.write_text(json.dumps({**known, **splits}, indent=2) + "\n")
