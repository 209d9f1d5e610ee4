"""`charrnn evaluate`: computes the loss on a whole split, under one or more protocols."""

import argparse
import contextlib
import json
import math
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
from charrnn_jax.messages import PROGRESS, show
from charrnn_jax.reading import read_json
from charrnn_jax.registry import PROTOCOLS

if TYPE_CHECKING:
    import numpy as np

    from charrnn_jax.evaluation.dynamic import Dynamic
    from charrnn_jax.workdir.run import Run


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
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first choose the numbers of --protocol=dynamic on training text, and keep them",
    )
    baseline_flags(parser)
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the losses and writes them to `evaluation.json`, if the workdir can be written."""
    trained = open_run(args, overrides)
    from charrnn_jax.evaluation.comparison import standard_error
    from charrnn_jax.evaluation.contamination import NOTABLE, PIECE, shared_share
    from charrnn_jax.evaluation.dynamic import Dynamic
    from charrnn_jax.evaluation.floor import find_floor
    from charrnn_jax.evaluation.metrics import CrossEntropy
    from charrnn_jax.evaluation.protocols import char_losses, protocols_in_all
    from charrnn_jax.workdir.tuned import tuned_protocol

    names = protocols_in_all() if args.protocol == "all" else [args.protocol]
    protocols = [tuned_protocol(trained, name) for name in names]
    if args.tune and args.protocol != Dynamic.name:
        raise UserError("--tune is for --protocol=dynamic: give that, too")
    dataset = trained.load_dataset(args.path)
    tokens = dataset.splits.with_context(args.split)
    if len(tokens) < 2:
        raise UserError(f"the run in {trained.workdir} has no {args.split} split to evaluate")
    floor = find_floor(dataset, args.split, of=trained.corpus, config=trained.config.data)
    train, unit = dataset.splits["train"], trained.vocabulary.unit
    has_baselines = check_baselines(args, train)
    results: dict[str, dict[str, Any]] = {}
    scored = []
    if args.tune:
        protocols = [_tune(trained, train)]
    for protocol in protocols:
        protocol = protocol.fit(trained.params, train, model=trained.model)
        losses = char_losses(trained.params, tokens, model=trained.model, protocol=protocol)
        loss, error = CrossEntropy.of(losses), standard_error(losses)
        known = math.isfinite(error)
        note = f"standard error {error:.4f} nats/{unit}" * known
        show_loss(f"{args.split} {protocol.label}", loss, trained.vocabulary, note=note)
        results[protocol.label] = {**loss.to_dict(), "standard_error": error if known else None}
        if floor:
            excess = floor.excess(losses)
            show(f"  {excess.describe(unit)}")
            floor.check(excess, protocol=protocol)
            results[protocol.label]["floor"] = excess.to_dict()
        scored.append((protocol, losses))
    file = trained.workdir / "evaluation.json"
    entry: dict[str, Any] = {
        "step": trained.step,
        "corpus": asdict(dataset.identity()),
        "losses": results,
    }
    # A synthetic text may repeat itself, and an imported model was trained on another text.
    if args.split != "train" and not floor and not trained.imported:
        share = entry["contamination"] = shared_share(tokens[1:], train)
        if share > NOTABLE:
            warnings.warn(
                f"{share:.1%} of the {PIECE}-character pieces of the {args.split} split also stand "
                "in the training text: its loss is lower than on new text",
                stacklevel=1,
            )
    if has_baselines:
        entry |= show_baselines(args, trained, train=train, tokens=tokens, scored=scored)
    try:
        _merge_into_json(file, {args.split: entry})
    except OSError as error:  # the losses were printed, so the command did its work
        remedy = "the losses are printed only"
        warnings.warn(str(file_error(error, path=file, doing="write", remedy=remedy)), stacklevel=1)


def _tune(trained: "Run", train: "np.ndarray") -> "Dynamic":
    """Chooses the numbers of dynamic evaluation on training text, and writes `dynamic.json`."""
    from charrnn_jax.evaluation.dynamic import Dynamic
    from charrnn_jax.evaluation.tuning import tune
    from charrnn_jax.workdir.tuned import save_tuned

    def say(tried: Dynamic, loss: float) -> None:
        PROGRESS.info(
            f"train {tried.name}: {loss:.4f} nats/{trained.vocabulary.unit} with "
            f"{tried.describe_numbers()}"
        )

    best = tune(
        Dynamic.from_config(trained.config.evaluation),
        trained.params,
        train,
        model=trained.model,
        report=say,
    )
    file = save_tuned(trained, best)
    show(f"Tuned on the end of the training text: {best.describe_numbers()}; saved in {file}")
    return best


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
