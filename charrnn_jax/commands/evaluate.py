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
from charrnn_jax.errors import UserError, file_error
from charrnn_jax.files import replacing
from charrnn_jax.messages import PROGRESS, show
from charrnn_jax.reading import read_json
from charrnn_jax.registry import PROTOCOLS

if TYPE_CHECKING:
    from charrnn_jax.data.dataset import Dataset
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
    moved_text_flag(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the losses and writes them to `evaluation.json`, if the workdir can be written."""
    trained = open_run(args, overrides)
    from charrnn_jax.evaluation.comparison import standard_error
    from charrnn_jax.evaluation.dynamic import Dynamic
    from charrnn_jax.evaluation.floor import find_floor
    from charrnn_jax.evaluation.metrics import CrossEntropy
    from charrnn_jax.evaluation.protocols import char_losses, make_protocol, protocols_in_all
    from charrnn_jax.workdir.tuned import fitted_protocol

    if args.tune and args.protocol != Dynamic.name:
        raise UserError("--tune is for --protocol=dynamic: give that, too")
    names = protocols_in_all() if args.protocol == "all" else [args.protocol]
    for name in names:
        make_protocol(trained.config.evaluation, name)  # before the text is read
    dataset = trained.load_dataset(args.path)
    tokens = dataset.splits.with_context(args.split)
    if len(tokens) < 2:
        raise UserError(f"the run in {trained.workdir} has no {args.split} split to evaluate")
    floor = find_floor(dataset, args.split, of=trained.corpus, config=trained.config.data)
    unit = trained.vocabulary.unit
    results: dict[str, dict[str, Any]] = {}
    if args.tune:
        _tune(trained, dataset)
    for name in names:
        protocol = fitted_protocol(trained, dataset, name=name)
        losses = char_losses(trained.params, tokens, model=trained.model, protocol=protocol)
        loss, error = CrossEntropy.of(losses), standard_error(losses)
        known = math.isfinite(error)
        show(
            f"{args.split} {protocol.label}: {loss.describe(unit)}, perplexity "
            f"{loss.describe_perplexity()} ({loss.count:,} {trained.vocabulary.kind}"
            + f", standard error {error:.4f} nats/{unit}" * known
            + ")"
        )
        results[protocol.label] = {**loss.to_dict(), "standard_error": error if known else None}
        if floor:
            excess = floor.excess(losses)
            show(f"  {excess.describe(unit)}")
            floor.check(excess, protocol=protocol)
            results[protocol.label]["floor"] = excess.to_dict()
    file = trained.workdir / "evaluation.json"
    entry = {"step": trained.step, "corpus": asdict(dataset.identity()), "losses": results}
    try:
        _merge_into_json(file, {args.split: entry})
    except OSError as error:  # the losses were printed, so the command did its work
        remedy = "the losses are printed only"
        warnings.warn(str(file_error(error, path=file, doing="write", remedy=remedy)), stacklevel=1)


def _tune(trained: "Run", dataset: "Dataset") -> None:
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
        dataset.splits["train"],
        model=trained.model,
        report=say,
    )
    file = save_tuned(trained, best)
    show(f"Tuned on the end of the training text: {best.describe_numbers()}; saved in {file}")


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
                entry["losses"] = {**old["losses"], **entry["losses"]}
        entry["sha256"] = digest_of(entry)
    with replacing(file) as partial:
        partial.write_text(json.dumps({**known, **splits}, indent=2) + "\n")
