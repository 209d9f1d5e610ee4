"""Profiles: seconds are where the time went, and the operations are those of the formula."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from helpers import EVERY_CELL, SMOKE, B, E, H, T, V, last_line_of_error, slow
from ml_collections import ConfigDict

import charrnn_jax
from charrnn_jax.data.batches import Batch, Chunks
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.main import main
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.cells.rg_lru import WIDTH
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.training import hooks, phases, profile, setup, tracking
from charrnn_jax.training.dispatch import count_step_flops
from charrnn_jax.training.train_step import create_train_state, train_step

SIZES = {"batch_size": B, "sequence_length": T}


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_PRODUCT_SIZE", {"cpu": 64})


# --- seconds --------------------------------------------------------------------------------------


def slowed(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
    def slow_function(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return slow_function


def test_phases_sum_to_the_wall_time_and_have_the_seconds_spent_in_them(
    tiny_config: ConfigDict, monkeypatch: pytest.MonkeyPatch, own_registries: None
) -> None:
    """Each part of a run sleeps; the train step does so on the device, and while it is traced."""

    def sleep_on_device(total: Any) -> Any:
        time.sleep(0.04)
        return total

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        time.sleep(0.4)  # while it is traced
        losses = cross_entropy(logits, targets)
        total = jax.lax.stop_gradient(losses.sum())
        return losses + 0 * jax.pure_callback(sleep_on_device, total, total)[None, None]

    charrnn_jax.register_loss("slow", loss)
    charrnn_jax.register_hook("slow", lambda config: Sleeper())
    tiny_config.train.loss = tiny_config.train.hooks = "slow"
    tiny_config.train.steps_per_call = 1
    monkeypatch.setattr(setup, "load_dataset", slowed(0.3, setup.load_dataset))
    monkeypatch.setattr(Chunks, "starts", slowed(0.02, Chunks.starts))
    for hook, seconds in ((hooks.Evaluate, 0.3), (hooks.Sample, 0.2), (hooks.Save, 0.4)):
        monkeypatch.setattr(hook, "__call__", slowed(seconds, hook.__call__))
    num_steps = 5
    start = time.perf_counter()
    found = profile.profile(tiny_config, num_steps=num_steps)
    assert found.wall_seconds < time.perf_counter() - start
    assert found.total_seconds == pytest.approx(found.wall_seconds, rel=0.03)
    least = {
        phases.SETUP: 0.3,
        phases.COMPILATION: 0.4 + 0.04,  # with the first step
        phases.USUAL: 0.04 * (num_steps - 1),
        phases.INPUT: 0.02 * (num_steps - 2),  # two batches are made beforehand
        phases.STEP: 0.04 * num_steps,
        phases.EVALUATION: 0.3,
        phases.SAMPLING: 2 * 0.2,
        phases.SAVING: 0.4,
        phases.OTHER: Sleeper.seconds,
    }
    seconds = {name: phase.seconds for name, phase in found.phases.items()}
    assert {name for name in least if seconds[name] < least[name]} == set()
    assert seconds.keys() == least.keys()
    times = {name: phase.times for name, phase in found.phases.items()}
    assert times[phases.USUAL] == num_steps - 1
    assert times[phases.STEP] == num_steps
    assert (times[phases.EVALUATION], times[phases.SAMPLING], times[phases.SAVING]) == (1, 2, 1)


class Sleeper:
    every_steps, seconds = 10, 0.25

    def __call__(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
        time.sleep(self.seconds)


def test_compiling_is_no_part_of_the_phase_that_it_happens_in() -> None:
    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        time.sleep(0.3)  # while it is traced
        return x

    with phases.timed() as clock, phases.phase(phases.EVALUATION):
        jax.eval_shape(program, 1.0)
    assert clock.seconds[phases.COMPILATION] >= 0.3 > clock.seconds[phases.EVALUATION]


def test_compilation_inside_compilation_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = phases.Clock()
    for end, seconds in ((2, 1), (4, 1.5), (6, 5), (9, 2)):  # the third contains the first two
        now = end
        clock.add_compilation(seconds)
    now = 10
    clock.stop()
    assert clock.seconds[phases.COMPILATION] == 5 + 2
    assert clock.seconds[phases.SETUP] == 10 - 7


def test_training_without_a_clock_waits_for_nothing() -> None:
    """Outside of a profile a phase returns what it is given, and so does not block the loop."""
    array = jax.numpy.ones(3)
    with phases.phase(phases.STEP) as finished:
        assert finished(array) is array
        assert finished is not jax.block_until_ready
    assert not phases.is_timed()
    with phases.timed(), phases.phase(phases.STEP) as finished:
        assert finished is jax.block_until_ready


@pytest.mark.parametrize(
    ("evaluate", "sample", "save", "num_steps"), [(0, 0, 0, 30), (4, 5, 6, 0), (7, 0, 10, 7)]
)
def test_a_whole_run_has_the_evaluations_samples_and_checkpoints_of_its_schedule(
    tiny_config: ConfigDict, evaluate: int, sample: int, save: int, num_steps: int
) -> None:
    epoch, train = 9, tiny_config.train
    train.evaluate_every_steps, train.sample_every_steps = evaluate, sample
    train.checkpoint_every_steps, train.num_steps = save, num_steps
    once = {name: profile.Phase(1.0, 1) for name in phases.PHASES}
    steps, seconds = profile._whole_run(tiny_config, once, steps_per_epoch=epoch)
    assert steps == (num_steps or 2 * epoch)
    hooks_of_run = [hooks.Evaluate(evaluate, *[None] * 3), hooks.Sample(sample, *[None] * 3)]
    hooks_of_run += [hooks.Save(every, *[None] * 4) for every in (evaluate, save)]
    schedule = hooks.Schedule(hooks_of_run, epoch, steps)
    called = Counter(
        kind
        for step in range(1, steps + 1)
        for kind in {type(hook) for hook in schedule.due(step)}  # a step is saved once
    )
    assert seconds[phases.EVALUATION] == called[hooks.Evaluate]
    assert seconds[phases.SAMPLING] == 1 + called[hooks.Sample]
    assert seconds[phases.SAVING] == called[hooks.Save]
    assert seconds[phases.USUAL] == steps - 1


# --- operations -----------------------------------------------------------------------------------


def count_traced_flops(model: CharRNN) -> int:
    """Operations of all products of a train step, with the body of a loop as often as it runs."""
    create = partial(create_train_state, model, optax.sgd(1.0), seed=0, batch_size=B)
    state = jax.eval_shape(create)
    ids = np.zeros((B, T), np.int32)
    batch = Batch(inputs=ids, targets=ids, resets=np.zeros(B, bool))

    def count(jaxpr: Any) -> int:
        return sum(count_one(equation) for equation in jaxpr.eqns)

    def count_one(equation: Any) -> int:
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            return 2 * prod(equation.outvars[0].aval.shape) * prod(shape[i] for i in contracting)
        inner = [
            count(getattr(value, "jaxpr", value))
            for param in equation.params.values()
            for value in (param if isinstance(param, tuple | list) else [param])
            if hasattr(getattr(value, "jaxpr", value), "eqns")
        ]
        if equation.primitive.name == "cond":  # one of its branches runs
            return max(inner)
        return equation.params.get("length", 1) * sum(inner)

    return count(jax.make_jaxpr(train_step)(state, batch).jaxpr)


@pytest.mark.parametrize(("cell", "num_gates"), [("gru", 3), ("lstm", 4), ("rnn", 1)])
def test_flops_of_a_step_are_those_of_the_formula_by_hand(cell: str, num_gates: int) -> None:
    recurrent, readout, table = num_gates * H * H, H * V, V * E * num_gates * H
    one = count_step_flops(CharRNN(V, E, H, cell=cell), **SIZES)
    assert one == 6 * (B * T * (recurrent + readout) + table)
    upper = 2 * num_gates * H * H
    three = count_step_flops(CharRNN(V, E, H, num_layers=3, cell=cell), **SIZES)
    assert three == one + 6 * B * T * 2 * upper


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_flops_of_the_scan_are_those_of_all_products_that_it_computes(cell: str) -> None:
    fields = {"cell": cell, "implementation": "scan", "num_layers": 2}
    model = CharRNN(V, E, H, **fields)
    taps = 6 * B * T * 2 * WIDTH * H if cell == "rg_lru" else 0  # its convolution is elementwise
    assert count_step_flops(model, **SIZES) - taps == count_traced_flops(model)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cell": "lstm", "num_layers": 2, "readout": "all"},
        {"embedding_rank": 2, "output_embedding": "tied"},
        {"input_dropout": 0.5},
    ],
    ids=str,
)
def test_flops_of_the_fused_form_are_its_products_but_for_the_sums_by_character(
    fields: dict[str, Any],
) -> None:
    """A product with one-hot rows is a way to add, and no operation of the model."""
    model = CharRNN(V, E, H, **fields)
    inputs, _ = CELLS[model.cell].count_weights(E, H)
    sums = 0 if model.input_dropout else 2 * V * B * T * (inputs // E)
    assert count_step_flops(model, **SIZES) + sums == count_traced_flops(model)


# --- the command ----------------------------------------------------------------------------------


def test_profile_prints_a_table_and_touches_no_run(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [SMOKE, f"--config.data.path={text_file}", "--config.sample.prompt=The"]
    command = ["profile", *own, "--config.train.length_warmup_steps=9", "--steps=2"]
    command += ["--config.train.hooks=tensorboard"]
    monkeypatch.setattr(tracking, "Track", None)  # no tracker records it
    assert main([*command, "--trace=trace"]) == 0
    rows = capsys.readouterr().out.splitlines()
    names = [row[:16].strip() for row in rows]
    assert names[2:14] == ["phase", *phases.PHASES, "together"]
    assert "100.0%" in rows[13]
    assert {path.name for path in tmp_path.iterdir()} == {"trace"}
    (trace,) = Path("trace").rglob("*.trace.json.gz")
    assert str(trace) in rows[-3]
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert Counter(event.get("name") for event in events)["train step"] == 1  # a call of two steps

    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = CharRNN(34, 16, 32)
    assert found["step_flops"] == count_step_flops(model, batch_size=8, sequence_length=32)
    assert found["xla_flops"] > 0
    assert found["peak_bytes"] > 1e7
    assert sum(phase["seconds"] for phase in found["phases"].values()) == pytest.approx(
        found["wall_seconds"], rel=0.03
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps=1"], "--steps=1 is too few"),
        (["--config.train.num_steps=3", "--steps=2"], "ends after 3 steps, and a profile takes 6"),
        (["--trace=FULL"], "already exists"),
        (["--workdir=runs/x"], "what is '--workdir=runs/x'"),
    ],
)
def test_a_profile_that_is_not_possible_is_one_line_and_leaves_nothing(
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    says: str,
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    own = [SMOKE, f"--config.data.path={text_file}", "--config.sample.prompt=The"]
    flags = [flag.replace("FULL", str(full)) for flag in flags]
    assert main(["profile", *own, f"--trace={tmp_path / 'trace'}", *flags]) == 2
    assert says in last_line_of_error(capsys)
    assert list(tmp_path.iterdir()) == [full]


@pytest.mark.parametrize("cell", [slow(cell) for cell in CELLS])
def test_every_cell_has_a_profile(tiny_config: ConfigDict, cell: str) -> None:
    tiny_config.model.cell = cell
    found = profile.profile(tiny_config, num_steps=2)
    assert found.total_seconds == pytest.approx(found.wall_seconds, rel=0.03)
