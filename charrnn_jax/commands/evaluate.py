"""`charrnn evaluate`: computes the loss on a whole split, under one or more protocols."""

import argparse
import contextlib
import json
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn_jax.commands.arguments import (
    checkpoint_flags,
    moved_text_flag,
    only_warning,
    open_run,
)
from charrnn_jax.commands.baselines import (
    baseline_flags,
    check_baselines,
    show_baselines,
    show_loss,
)
from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.messages import PROGRESS, show
from charrnn_jax.reading import read_json
from charrnn_jax.registry import PROTOCOLS

if TYPE_CHECKING:
    import numpy as np

    from charrnn_jax.data.vocabulary import Vocabulary
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
    from charrnn_jax.evaluation.dynamic import Dynamic
    from charrnn_jax.evaluation.floor import find_floor
    from charrnn_jax.evaluation.protocols import char_losses, protocols_in_all
    from charrnn_jax.workdir.tuned import tuned_protocol

    names = protocols_in_all() if args.protocol == "all" else [args.protocol]
    if args.tune and args.protocol != Dynamic.name:
        raise UserError("--tune is for --protocol=dynamic: give that, too")
    # Numbers that --tune replaces are not read: they may be damaged, or those of another step.
    protocols = [] if args.tune else [tuned_protocol(trained, name) for name in names]
    dataset = trained.load_dataset(args.path)
    train, tokens = dataset.splits["train"], dataset.splits.with_context(args.split)
    if len(tokens) < 2:
        raise UserError(f"the run in {trained.workdir} has no {args.split} split to evaluate")
    has_baselines = check_baselines(args, train)
    floor = find_floor(dataset, args.split, of=trained.corpus, config=trained.config.data)
    if args.tune:
        protocols = [_tune(trained, train)]
    entry: dict[str, Any] = {
        "step": trained.step,
        "corpus": asdict(dataset.identity()),
        "losses": {},
    }
    scored = []
    for protocol in protocols:
        protocol = protocol.fit(trained.params, train, model=trained.model)
        losses = char_losses(trained.params, tokens, model=trained.model, protocol=protocol)
        if not math.isfinite(losses.sum()):  # JSON could not hold it
            remedy = "lower its rate, or use --tune" if isinstance(protocol, Dynamic) else "mend it"
            raise UserError(f"protocol {protocol.label} gave losses that are not finite: {remedy}")
        name = f"{args.split} {protocol.label}"
        entry["losses"][protocol.label] = _show(name, losses, trained.vocabulary)
        if floor:
            excess = floor.excess(losses)
            show(f"  {excess.describe(trained.vocabulary.unit)}")
            floor.check(excess, protocol=protocol)
            entry["losses"][protocol.label]["floor"] = excess.to_dict()
        if isinstance(protocol, Dynamic):  # its label does not tell them
            entry["losses"][protocol.label]["settings"] = protocol.to_dict()
        scored.append((protocol, losses))
    # A synthetic text may repeat itself, and an imported model was trained on another text.
    if args.split != "train" and not floor and not trained.imported:
        entry["contamination"] = _measure_contamination(args.split, tokens[1:], train)
    if has_baselines:
        entry |= show_baselines(args, trained, train=train, tokens=tokens, scored=scored)
    file = trained.workdir / "evaluation.json"
    with only_warning(file, remedy="the losses are printed only"):
        _merge_into_json(file, {args.split: entry})


def _show(name: str, losses: "np.ndarray", vocabulary: "Vocabulary") -> dict[str, Any]:
    """Prints the loss of a split with its standard error, and returns it as data for JSON."""
    from charrnn_jax.evaluation.comparison import standard_error
    from charrnn_jax.evaluation.metrics import CrossEntropy

    loss, error = CrossEntropy.of(losses), standard_error(losses)
    known = math.isfinite(error)
    note = f"standard error {error:.4f} nats/{vocabulary.unit}" * known
    show_loss(name, loss, vocabulary, note=note)
    return {**loss.to_dict(), "standard_error": error if known else None}


def _measure_contamination(split: str, tokens: "np.ndarray", train: "np.ndarray") -> float:
    """Returns the share of a split that also stands in the training text; much is a warning."""
    from charrnn_jax.evaluation.contamination import NOTABLE, PIECE, shared_share

    share = shared_share(tokens, train)
    if share > NOTABLE:
        warnings.warn(
            f"{share:.1%} of the {PIECE}-character pieces of the {split} split also stand in the "
            "training text: its loss is lower than on new text",
            stacklevel=1,
        )
    return share


def _tune(trained: "Run", train: "np.ndarray") -> "Dynamic":
    """Chooses the numbers of dynamic evaluation on training text, and writes `dynamic.json`."""
    from charrnn_jax.evaluation.dynamic import Dynamic
    from charrnn_jax.evaluation.tuning import tune
    from charrnn_jax.workdir.tuned import TUNED_FILE, save_tuned

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
    show(f"Tuned on the end of the training text: {best.describe_numbers()}")
    with only_warning(trained.workdir / TUNED_FILE, remedy="they are used this time only"):
        save_tuned(trained, best)
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
