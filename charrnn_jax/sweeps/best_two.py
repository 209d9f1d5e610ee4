"""`describe_best_two`: compares the two best configurations of a sweep character by character.

The tables of a report compare configurations over seeds. This compares one run of each, on the same
characters, and so says whether the text is long enough to tell the two apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from charrnn_jax.errors import UserError, shortened
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.reports.sweep.statistics import Configuration, Result, group, setting_key
from charrnn_jax.workdir.compare import compare
from charrnn_jax.workdir.run import load_run

MOST_CHARS = 100_000  # of the validation split, which bounds the time
_CALLED = ("the first", "the second")
_WHAT = "The two best configurations, character by character"


def describe_best_two(
    results: Sequence[Result], workdirs: Mapping[str, Path], *, protocol: Protocol
) -> list[str]:
    """Returns a paragraph for the report, or none if fewer than two configurations have losses.

    The runs are the first ones of both configurations that have the same seed, not the best ones,
    which would be a choice by luck. Their latest checkpoints are used, as in the tables.

    Args:
      results: results of the work units.
      workdirs: workdir of each unit, by its name.
      protocol: protocol of the sweep.
    """
    ranked = sorted(
        (each for each in group(results) if each.losses),
        key=lambda each: float(np.mean(list(each.losses.values()))),
    )
    if len(ranked) < 2:
        return []
    names = _same_seed(*ranked[:2])
    try:
        runs = [load_run(workdirs[name], checkpoint="latest") for name in names]
        found = compare(*runs, protocol=protocol, max_chars=MOST_CHARS)
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        # A checkpoint or the text is missing, or memory: no reason to be without a report.
        return [f"{_WHAT}: not compared ({shortened(str(error))})."]
    (pair,) = found.pairs
    return [
        f"{_WHAT}, in one run of each ({names[0]}; {names[1]}), {found.protocol}, on "
        f"{found.num_chars:,} {found.noun} of the validation split: "
        f"{pair.describe(_CALLED, unit=found.unit)} "
        f"{pair.describe_power(_CALLED, unit=found.unit)} This is about other text for the same "
        "two runs; the table of configurations is about other seeds."
    ]


def _same_seed(best: Configuration, second: Configuration) -> tuple[str, str]:
    """Returns the names of the first two runs with the same seed; without one, of the first two."""
    by_seed = {setting_key(run.settings, "seed"): run.name for run in reversed(second.done)}
    for run in best.done:
        if name := by_seed.get(setting_key(run.settings, "seed")):
            return run.name, name
    return best.done[0].name, second.done[0].name
