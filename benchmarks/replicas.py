"""Measures a sweep of many seeds as replicas against the same runs, one command each.

  python -m benchmarks.replicas

Sixteen seeds of a GRU with 128 units on Tiny Shakespeare. It measures the wall-clock time of the
whole commands, including start and compilation, and compares the losses. Each side has its own
empty cache, and the sides alternate. Writes benchmarks/results/replicas/replicas.json and .md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import versions
from benchmarks.report import describe_machine
from charrnn_jax.workdir.checkpoints import steps
from charrnn_jax.workdir.json_lines import read_json_lines

RESULTS = Path(__file__).parent / "results" / "replicas"
EXPERIMENT = """
from charrnn_jax.config import default_config

def get_config(arg=""):
    config = default_config()
    config.data.batching = "lanes"
    config.data.batch_size = 32
    config.data.sequence_length = 64
    config.model.embedding_size = 128
    config.model.hidden_size = 128
    config.optimizer.learning_rate = 5e-3
    config.train.num_steps = {num_steps}
    return config

def get_hyper(hyper):
    return hyper.sweep("seed", range({num_replicas}))
"""


def main() -> None:
    """Measures both sides in turn and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_replicas", type=int, default=16)
    parser.add_argument("--num_steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = []
    for index in range(args.rounds):
        with tempfile.TemporaryDirectory() as place:
            rounds.append(measure(Path(place), args.num_replicas, num_steps=args.num_steps))
        print(f"round {index}: {rounds[-1]}", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = {"machine": describe_machine(), "versions": versions(), **vars(args), "runs": rounds}
    (RESULTS / "replicas.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "replicas.md").write_text(describe(results))
    print(describe(results))


def measure(place: Path, num_replicas: int, *, num_steps: int) -> dict:
    """Returns the seconds of both sides, and the largest difference of their losses, nats/char."""
    experiment = place / "experiment.py"
    experiment.write_text(EXPERIMENT.format(num_steps=num_steps, num_replicas=num_replicas))
    alone = sum(
        run(
            place / "alone",
            f"--config={experiment}",
            f"--workdir={place}/seed={seed}",
            f"--config.seed={seed}",
        )
        for seed in range(num_replicas)
    )
    together = run(
        place / "together", "sweep", f"--config={experiment}", f"--workdir={place}/sweep"
    )
    differences = []
    for seed in range(num_replicas):
        one, other = place / f"seed={seed}", place / "sweep" / "units" / f"seed={seed}"
        assert steps(one)[-1] == steps(other)[-1] == num_steps
        pairs = zip(losses(one), losses(other), strict=True)
        differences += [abs(x - y) for x, y in pairs]
    return {"alone": alone, "together": together, "largest_difference": max(differences)}


def run(cache: Path, *arguments: str) -> float:
    """Returns the seconds of a command, which keeps its compiled programs in `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "charrnn_jax.main", *arguments]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def losses(workdir: Path) -> list[float]:
    """Returns the training and validation losses of a run in order, nats/char."""
    rows = read_json_lines(workdir / "metrics.jsonl")
    names = ("train/loss", "validation/loss")
    return [row[name] for row in rows for name in names if name in row]


def describe(results: dict) -> str:
    """Returns the results as Markdown."""
    alone, together = (
        statistics.median(r[side] for r in results["runs"]) for side in ("alone", "together")
    )
    ratios = ", ".join(f"{r['together'] / r['alone']:.2f}" for r in results["runs"])
    difference = max(r["largest_difference"] for r in results["runs"])
    libraries = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['num_replicas']} seeds of a GRU-128 (embedding 128, batches of 32 x 64, "
        f"{results['num_steps']} steps), whole wall time, medians of {len(results['runs'])} "
        "rounds\n"
        f"on {results['machine']}; {libraries}.\n\n"
        "| | seconds |\n|---|---|\n"
        f"| one `train` command after the other | {alone:.1f} |\n"
        f"| one `sweep` command | {together:.1f} |\n\n"
        f"Ratio {together / alone:.2f} (by round: {ratios}). Largest difference between any two "
        f"losses of the same seed and step: {difference:.1e} nats/char.\n"
    )


if __name__ == "__main__":
    main()
