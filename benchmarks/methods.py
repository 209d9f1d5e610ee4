"""Measures what each method adds to a training step.

  python -m benchmarks.methods

The base is a GRU with 384 units, 16 lanes of 64 characters, AdamW. Each method alone changes a few
fields of its config. All are compiled first and then take turns, so that other load on the machine
affects all alike. Writes benchmarks/results/methods/methods.json and .md.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.measure import versions
from benchmarks.report import describe_machine
from charrnn_jax.config import default_config, override_values
from charrnn_jax.memory import keep_freed_memory
from charrnn_jax.training.loop import choose_train_step
from charrnn_jax.training.setup import make_setup
from charrnn_jax.training.train_step import apply_if_finite

RESULTS = Path(__file__).parent / "results" / "methods"
BASE: dict[str, Any] = {
    "data.corpus": "python-stdlib",
    "data.batching": "lanes",
    "data.batch_size": 16,
    "data.sequence_length": 64,
    "model.embedding_size": 128,
    "model.hidden_size": 384,
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 1.0,
    "train.num_steps": 1000,
    "sample.prompt": "def ",
}
Fields = dict[str, Any]
LOCKED: Fields = {"model.dropout": 0.3, "model.input_dropout": 0.1, "model.dropout_noise": "locked"}
REGULARISERS: dict[str, Fields] = {
    "dropout": {"model.dropout": 0.3, "model.input_dropout": 0.1},
    "locked dropout": LOCKED,
    "weight dropout": {"model.weight_dropout": 0.3},
    "embedding dropout": {"model.embedding_dropout": 0.1},
    "zoneout": {"model.zoneout": 0.1},
    "activation penalties": {"train.activation_penalty": 2.0, "train.temporal_penalty": 1.0},
    "average": {"train.averaging": "ema"},
}
METHODS: dict[str, Fields] = {
    "base": {},
    "bfloat16": {"model.dtype": "bfloat16"},
    **{f"cell {name}": {"model.cell": name} for name in ("lstm", "rnn", "layer_norm_gru")},
    **{f"cell {name}": {"model.cell": name} for name in ("layer_norm_lstm", "mogrifier_lstm")},
    **{f"cell {name}": {"model.cell": name} for name in ("slstm", "min_gru", "min_lstm", "rg_lru")},
    **REGULARISERS,
    "all regularisers": {
        name: value
        for each in ("locked dropout", *list(REGULARISERS)[2:])
        for name, value in REGULARISERS[each].items()
    },
    **{f"optimizer {name}": {"optimizer.name": name} for name in ("lion", "adan", "muon")},
    "optimizer schedule_free": {"optimizer.name": "schedule_free"},
    "scheduled sampling": {"train.sampled_inputs": "linear", "train.sampled_share": 0.25},
    "two layers of 256": {"model.num_layers": 2, "model.hidden_size": 256},
}


def main() -> None:
    """Measures all methods in turn and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of methods, separated by commas")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    keep_freed_memory()
    names = ["base", *filter(None, args.only.split(","))] if args.only else list(METHODS)
    with tempfile.TemporaryDirectory() as place:
        workdirs = (Path(place) / str(index) for index in range(len(names)))
        runs = {name: make_step(METHODS[name], next(workdirs)) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    results = {"machine": describe_machine(), "versions": versions(), "seconds": seconds}
    table = describe(results)
    if not args.only:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "methods.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "methods.md").write_text(table)
    print(table)


def make_step(overrides: dict[str, Any], workdir: Path) -> Callable[[], None]:
    """Returns a function that runs one training step of a config and waits for it."""
    config = override_values(default_config(), BASE | overrides)
    setup = make_setup(config, workdir)
    step = jax.jit(apply_if_finite(choose_train_step(config)[0]), donate_argnums=0)
    batch, state = jax.device_put(setup.batches[0]), setup.state

    def run() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    run()  # compiles
    run()
    return run


def describe(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    base = results["seconds"]["base"]
    lines = [
        f"A training step of a GRU-384 (embedding 128, 16 x 64 characters, AdamW), and with one "
        f"method each; medians of {len(base)} rounds in turn\non {results['machine']}; {libraries}."
        "\n\n| method | ms a step | times the base |\n|---|---|---|"
    ]
    for name, seconds in results["seconds"].items():
        ratio = statistics.median(mine / its for mine, its in zip(seconds, base, strict=True))
        lines.append(f"| {name} | {1000 * statistics.median(seconds):.1f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
