"""A choice between programs that compute the same, by their measured time, kept in a file."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from charrnn_jax.data.corpora import cache_folder
from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.messages import PROGRESS
from charrnn_jax.reading import read_json

Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a program, and what it is called with
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 21  # including the first, which compiles
_SECONDS = 1.0  # of timed calls, after which no further round begins


def choose(
    kind: str, key: str, candidates: Mapping[str, Call], *, clearly: float, what: str
) -> str:
    """Returns the name of the fastest candidate; what was measured once is not measured again.

    Args:
      kind: kind of the choice, the name of its file in the cache folder.
      key: what the choice depends on.
      candidates: name -> call that is measured. The first candidate is the plain one.
      clearly: another candidate is chosen only below this share of the plain one's time.
      what: what a call does, as in "Time of 8 steps".
    """
    known: dict[str, str] = {}
    file = cache_folder() / f"{kind}.json"
    with contextlib.suppress(UserError):  # missing, or damaged
        known = read_json(file, dict[str, str], remedy="delete it")
    if known.get(key) in candidates:
        return known[key]
    seconds = measure(candidates)
    plain, fastest = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
    chosen = fastest if seconds[fastest] < clearly * seconds[plain] else plain
    shown = ", ".join(f"{name} {1000 * s:.1f} ms" for name, s in seconds.items())
    PROGRESS.info(f"Time of {what}: {shown}; from now on: {chosen}")
    with contextlib.suppress(OSError), replacing(file) as partial_file:
        partial_file.write_text(json.dumps({**known, key: chosen}, indent=1))
    return chosen


def measure(calls: Mapping[str, Call]) -> dict[str, float]:
    """Returns the seconds of each call, the best of several after one that compiles.

    The calls take turns, so that a moment in which the machine is busy does not decide.

    Args:
      calls: name -> (program, its arguments, the first of which is donated and so copied here).
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    num_rounds, spent = 0, 0.0
    while num_rounds < _LEAST_ROUNDS or (num_rounds < _MOST_ROUNDS and spent < _SECONDS):
        for name, (program, (donated, *others)) in calls.items():
            copy = jax.block_until_ready(jax.tree.map(jnp.copy, donated))
            start = time.perf_counter()
            jax.block_until_ready(program(copy, *others))
            seconds[name].append(time.perf_counter() - start)
        num_rounds += 1
        spent = sum(sum(times[1:]) for times in seconds.values())
    return {name: min(times[1:]) for name, times in seconds.items()}
