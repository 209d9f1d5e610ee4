"""What several test files share: tiny models, runs that are compared, signals."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.evaluation.copies import Span
from charrnn_jax.evaluation.samples import FIGURES, Figure, Judged, Judgement
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.models.char_rnn import forward as unjitted_forward
from charrnn_jax.training.train_step import TrainState
from charrnn_jax.workdir.json_lines import read_json_lines
from charrnn_jax.workdir.run import load_run

V, E, H, B, T = 11, 6, 8, 3, 10
VOCABULARY = Vocabulary("\nabcdefghi")  # V ids
SMOKE = f"--config={ROOT / 'experiments' / 'smoke.py'}"
forward = jax.jit(unjitted_forward, static_argnames="model")


def slow(*values: Any) -> Any:
    """Values of `pytest.mark.parametrize` for `-m slow`: more of what is tested without."""
    return pytest.param(*values, marks=pytest.mark.slow)


# --- models -------------------------------------------------------------------------------------

# For tests of many cases a cell; without `-m slow`, of the first cells only.
EVERY_CELL = [cell if cell in ("gru", "lstm", "rnn") else slow(cell) for cell in CELLS]


def make(cell: str, num_layers: int = 1, seed: int = 0, *, embedding_size: int = E, **fields: Any):
    """A model, parameters with no zeros in them, a carry that is not zero, and tokens."""
    model = CharRNN(V, embedding_size, H, num_layers=num_layers, cell=cell, **fields)
    params = initialize_params(model, jax.random.key(seed))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(treedef, noisy)
    rng = np.random.default_rng(seed)
    carry = jax.tree.map(
        lambda c: jnp.asarray(rng.normal(size=c.shape), jnp.float32), model.initialize_carry(B)
    )
    carry = tuple(possible(cell, layer_carry) for layer_carry in carry)
    return model, params, carry, jnp.asarray(rng.integers(0, V, (B, T)))


def possible(cell: str, carry: Any) -> Any:
    """The carry of a layer, with numbers of any size made such as the cell can have after a step:
    the sLSTM divides by its n, which is then at least 1."""
    if cell != "slstm":
        return carry
    c, n, m, h = carry
    return c, jnp.where(n == 0, 0, 1 + abs(n)), m, h


def sampler(**changes) -> Sampler:
    model, params, _, _ = make("gru", num_layers=2)
    return Sampler(params, model=model, vocabulary=VOCABULARY, **changes)


# --- runs ---------------------------------------------------------------------------------------


def assert_bitwise_equal(a: TrainState, b: TrainState) -> None:
    def plain(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    assert all(plain(x).tobytes() == plain(y).tobytes() for x, y in leaves)


def is_measured(name: str) -> bool:
    """Whether a number in metrics.jsonl is that of the machine, and differs between equal runs."""
    return "second" in name or "memory" in name


def rows_without_time(workdir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl less what was measured of the machine."""
    rows = read_json_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not is_measured(k)} for row in rows]


def assert_rows_agree(workdir: Path, other: Path, *, rel: float = 1e-3) -> None:
    """The losses of the two runs; epochs of tiny steps may differ by more than three steps do."""
    rows, others = rows_without_time(workdir), rows_without_time(other)
    for row, expected in zip(rows, others, strict=True):
        for name, value in expected.items():
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=rel))


def assert_same_run(workdir: Path, other: Path) -> None:
    """Bit for bit: rows, samples and the parameters of the latest checkpoint."""
    assert rows_without_time(workdir) == rows_without_time(other)
    first, second = ((folder / "samples.jsonl").read_text() for folder in (workdir, other))
    assert first == second
    params = (load_run(folder, checkpoint="latest").params for folder in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, *params)


def some_judgement() -> Judgement:
    figures = {name: Figure(0.5, 0.25, 0.75) for name in FIGURES}
    judged = Judged(figures, (2.5,) * 4, (Figure(2.5, 2.25, 2.75),), Span(0, 9, 20), 0)
    return Judgement(judged, {"temperature 1": replace(judged, verdict="gibberish")}, 300, 9, 4, 50)


@dataclass(frozen=True)
class CallAt:
    """A hook that calls a function with (step, metrics) once, after `every_steps` steps."""

    every_steps: int
    function: Callable[[int, dict[str, Any]], object]

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        if step == self.every_steps:
            self.function(step, metrics)


def signal_at(step: int, number: int = signal.SIGINT) -> CallAt:
    """A hook that sends a real signal to this process after `step` steps: the run stops after the
    next call of the device."""
    return CallAt(step, lambda *_: os.kill(os.getpid(), number))


# --- the command line ---------------------------------------------------------------------------


def last_line_of_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Checks that an error is one line, and returns it."""
    err = capsys.readouterr().err.splitlines()
    errors = [line for line in err if line.startswith("charrnn: error: ")]
    assert len(errors) == 1, err
    assert err[-1] == errors[0]
    return errors[0]
