"""Functions that build sweeps: lists of overrides, {"section.field": value}, one for each run.

An experiment file's `get_hyper(hyper)` is called with this module and returns such a list:

>>> product([sweep("model.cell", ["gru", "lstm"]), sweep("seed", range(2))])
... # doctest: +NORMALIZE_WHITESPACE
[{'model.cell': 'gru', 'seed': 0}, {'model.cell': 'gru', 'seed': 1},
 {'model.cell': 'lstm', 'seed': 0}, {'model.cell': 'lstm', 'seed': 1}]

The functions are named as in the experiment files of big_vision and TensorFlow.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from charrnn_jax.errors import UserError

Overrides = dict[str, Any]


def fixed(name: str, value: Any) -> list[Overrides]:
    """Returns a sweep with one value of a field."""
    return [{name: value}]


def sweep(name: str, values: Iterable[Any]) -> list[Overrides]:
    """Returns a sweep over the values of a field."""
    return [{name: value} for value in values]


def product(sweeps: Sequence[Sequence[Overrides]]) -> list[Overrides]:
    """Returns every combination of one item from each sweep; the last sweep varies fastest.

    Raises:
      UserError: two of the sweeps set the same field.
    """
    return [_merge(items) for items in itertools.product(*sweeps)]


def zipit(sweeps: Sequence[Sequence[Overrides]]) -> list[Overrides]:
    """Combines the first items of all sweeps, then the second ones, and so on.

    A sweep with a single item, such as `fixed`, is combined with every item of the others.

    Raises:
      UserError: their lengths differ, or two of them set the same field.
    """
    lengths = {len(items) for items in sweeps} - {1}
    if len(lengths) > 1:
        raise UserError(f"zipit needs sweeps of the same length, not of {sorted(lengths)}")
    length = max(lengths, default=1)
    columns = [list(items) * (length if len(items) == 1 else 1) for items in sweeps]
    return [_merge(items) for items in zip(*columns, strict=True)]


def chainit(sweeps: Sequence[Sequence[Overrides]]) -> list[Overrides]:
    """Returns the items of the sweeps, one sweep after the other."""
    return list(itertools.chain.from_iterable(sweeps))


def subsample(sweep: Sequence[Overrides], num: int, *, seed: int = 0) -> list[Overrides]:
    """Returns `num` random items of a sweep in their order, or all items if there are fewer."""
    chosen = np.random.default_rng(seed).permutation(len(sweep))[:num]
    return [sweep[index] for index in sorted(chosen)]


def _merge(items: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for item in items:
        if both := merged.keys() & item.keys():
            raise UserError(f"two sweeps set {min(both)}: set it in one of them only")
        merged.update(item)
    return merged
