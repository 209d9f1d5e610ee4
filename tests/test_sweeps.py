import io
import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from charrnn_jax.config import default_config
from charrnn_jax.errors import BusyError, UserError
from charrnn_jax.experiment import call_experiment, load_experiment
from charrnn_jax.files import locked
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import initialize_params, make_model
from charrnn_jax.reports.sweep.statistics import Result
from charrnn_jax.sweeps import hyper, local
from charrnn_jax.sweeps import units as units_lib
from charrnn_jax.sweeps.jobs import Job, make_jobs
from charrnn_jax.sweeps.local import Worker, make_workers, run_jobs
from charrnn_jax.sweeps.table import SweepTable
from charrnn_jax.sweeps.units import WorkUnit, load_sweep, make_units, save_sweep, write_report

VALUES = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@given(VALUES, VALUES, VALUES)
def test_product_holds_every_combination_once_last_fastest(a: Any, b: Any, c: Any) -> None:
    swept = hyper.product([hyper.sweep("a", a), hyper.sweep("b", b), hyper.sweep("c", c)])
    assert [(s["a"], s["b"], s["c"]) for s in swept] == list(itertools.product(a, b, c))


@given(st.lists(st.tuples(st.integers(), st.integers()), min_size=1), st.integers())
def test_zipit_pairs_items_and_repeats_fixed_ones(pairs: Any, value: int) -> None:
    first, second = zip(*pairs, strict=True)
    swept = hyper.zipit(
        [hyper.sweep("a", first), hyper.sweep("b", second), hyper.fixed("c", value)]
    )
    assert swept == [{"a": x, "b": y, "c": value} for x, y in pairs]


@given(st.lists(st.integers(), unique=True), st.integers(0, 20), st.integers(0, 5))
def test_subsample_draws_different_items_in_order(values: Any, num: int, seed: int) -> None:
    swept = hyper.sweep("a", values)
    drawn = hyper.subsample(swept, num, seed=seed)
    assert len(drawn) == min(num, len(values))
    assert drawn == [item for item in swept if item in drawn]
    assert drawn == hyper.subsample(swept, num, seed=seed)


def test_chainit_joins_and_conflicts_are_errors() -> None:
    assert hyper.chainit([hyper.fixed("a", 1), hyper.fixed("b", 2)]) == [{"a": 1}, {"b": 2}]
    with pytest.raises(UserError, match="two sweeps set a"):
        hyper.product([hyper.fixed("a", 1), hyper.fixed("a", 2)])
    with pytest.raises(UserError, match=r"same length, not of \[2, 3\]"):
        hyper.zipit([hyper.sweep("a", range(2)), hyper.sweep("b", range(3))])


def units_of(sweep: Any, workdir: Path = Path("s")) -> list[WorkUnit]:
    return make_units(default_config(), sweep, workdir=workdir)


def test_units_are_the_same_folders_when_the_sweep_grows() -> None:
    few = units_of(hyper.product([hyper.sweep("model.cell", ["gru"]), hyper.sweep("seed", [0])]))
    many = units_of(
        hyper.product([hyper.sweep("model.cell", ["rnn", "gru"]), hyper.sweep("seed", [1, 0])])
    )
    assert few[0].workdir in [unit.workdir for unit in many]
    assert few[0].name == "cell=gru,seed=0"


@pytest.mark.parametrize(
    "value", ["../../etc", "a/b", "ä" * 300, "", "x\ny", "CON", ".", "-rf", "$(ls)", "a" * 500]
)
def test_any_text_makes_a_safe_folder_of_its_own(value: str) -> None:
    names = {unit.name for unit in units_of([{"data.path": value}, {"data.path": value + "b"}])}
    assert len(names) == 2
    for name in names:
        assert Path(name).name == name
        assert len(name.encode()) < 200
        assert name.isprintable()


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("model.cell", "must return a list of dicts"),
        ([], "no work units"),
        ([{"seed": 1}, {"seed": 1}], "returned seed=1 twice, as units 0 and 1"),
        ([{1: 2}], "get_hyper sets 1"),
        ([{"evaluation.window": 8}, {"evaluation.window": 9}], "losses could not be compared"),
        ([{"model.cel": "gru"}], "did you mean config.model.cell"),
        ([{"model.hidden_size": "many"}], "must be a whole number"),
        (
            [{"model.cell": "gru"}, {"model.cell": "tree"}],
            "unit 1, cell=tree: .*there are gru",
        ),
    ],
)
def test_wrong_sweeps_are_errors_before_anything_runs(sweep: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        units_of(sweep)


def test_fields_with_the_same_last_name_are_told_apart() -> None:
    units = units_of([{"data.max_chars": 5, "model.dropout": 0.5}, {"sample.num_chars": 5}])
    assert [unit.name for unit in units] == ["max_chars=5,dropout=0.5", "num_chars=5"]
    units = units_of([{"data.batch_size": 32}, {"evaluation.batch_size": 32}])
    assert [unit.name for unit in units] == ["data.batch_size=32", "evaluation.batch_size=32"]


def test_one_launcher_at_a_time(tmp_path: Path) -> None:
    message = "another process is running a sweep"
    locking = partial(locked, tmp_path, doing="running a sweep")
    with locking(), pytest.raises(BusyError, match=message), locking():
        pass
    with locking():
        pass


def test_a_saved_sweep_is_the_same_sweep(tmp_path: Path) -> None:
    config = default_config()
    config.model.hidden_size = 64
    sweep = hyper.sweep("optimizer.learning_rate", [1e-3, 0.1])
    save_sweep(tmp_path, config=config, sweep=sweep)
    assert load_sweep(tmp_path) == make_units(config, sweep, workdir=tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="holds no sweep"):
        load_sweep(tmp_path)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_jobs_hold_every_unit_once_and_only_replicas_share_one(
    num_cells: int, num_seeds: int, num_workers: int
) -> None:
    sizes = hyper.sweep("model.hidden_size", range(1, 1 + num_cells))
    units = units_of(hyper.product([sizes, hyper.sweep("seed", range(num_seeds))]))
    jobs = make_jobs(units, workdir=Path("s"), num_workers=num_workers)
    assert sorted(unit.index for job in jobs for unit in job.units) == list(range(len(units)))
    lengths = [len(job.units) for job in jobs]
    assert lengths == sorted(lengths, reverse=True)
    for job in jobs:
        assert len({unit.config.model.hidden_size for unit in job.units}) == 1
    if num_cells == 1:
        assert len(jobs) == min(num_seeds, num_workers)


def test_workers_register_the_experiment_files_of_their_job() -> None:
    units = units_of(hyper.sweep("model.hidden_size", [8, 16]))
    files = ("/experiments/my cell.py", "/experiments/my_loss.py")
    jobs = make_jobs(units, workdir=Path("s"), num_workers=1, experiments=files)
    register = [f"--register={file}" for file in files]
    for job in jobs:
        assert job.command()[-3:] == [f"--work_unit={job.units[0].index}", *register]
        assert Job(job.units, job.workdir).command() == job.command()[:-2]


def test_workers_share_the_cores_or_have_a_card_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(
        num_workers: int | None, *, backend: str, num_devices: int = 1
    ) -> list[tuple[set[int], Mapping[str, str]]]:
        monkeypatch.setattr(local, "_devices", lambda: (backend, num_devices))
        return [(set(each.cores), each.environment) for each in make_workers(num_workers)]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 7}, raising=False)
    assert workers(None, backend="cpu") == [({core}, {}) for core in (0, 2, 3, 5, 7)]
    assert workers(2, backend="cpu") == [({0, 3, 7}, {}), ({2, 5}, {})]
    assert all(cores for cores, _ in workers(7, backend="cpu"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards = [(set(), {"CUDA_VISIBLE_DEVICES": card}) for card in "0123"]
    assert workers(None, backend="gpu", num_devices=4) == cards
    assert workers(2, backend="gpu", num_devices=4) == cards[:2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert workers(None, backend="gpu", num_devices=2) == [cards[1], cards[3]]
    assert workers(None, backend="tpu", num_devices=4) == [(set(), {})]


def test_a_unit_whose_process_died_has_failed_and_one_that_ended_is_as_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = units_of(hyper.sweep("seed", range(3)), tmp_path)
    units[0].write_status("running")
    units[2].write_status("diverged", message="the loss is nan")
    command = [sys.executable, "-c", "import sys; print('gone'); sys.exit(3)"]
    monkeypatch.setattr(Job, "command", lambda job: command)
    jobs = [Job((unit,), tmp_path) for unit in units]
    with SweepTable(units, console=Console(file=io.StringIO())) as table:
        run_jobs(jobs, [Worker(frozenset(), {})] * 2, table=table)
    statuses = [(unit.read_status()["status"], unit.read_status()["message"]) for unit in units]
    assert [status for status, _ in statuses] == ["failed", "failed", "diverged"]
    assert statuses[0][1] == f"its process ended with exit code 3; see {jobs[0].log}"
    assert statuses[2][1] == "the loss is nan"
    assert all(job.log.read_text() == "gone\n" for job in jobs)


def test_table_is_plain_text_where_a_notebook_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter sets it for all commands
    (unit,) = units_of([{"seed": 3}], tmp_path)
    with SweepTable([unit]) as table:
        unit.write_status("done")
        table.update()
    assert "seed=3" in (shown := capsys.readouterr().out)
    assert "\x1b" not in shown


def test_a_unit_of_another_config_is_not_done(tmp_path: Path) -> None:
    (unit,) = units_of([{"seed": 3}], tmp_path)
    unit.write_status("done")
    assert unit.is_done()
    config = unit.config.copy_and_resolve_references()
    config.train.num_epochs += 1
    assert not replace(unit, config=config).is_done()
    assert not replace(unit, config=config).has_ended()


@pytest.mark.slow
def test_the_scaling_law_of_a_report_counts_parameters_and_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep that varies nothing but sizes and lengths."""

    def read_result(unit: WorkUnit) -> Result:
        size, num_steps = unit.config.model.hidden_size, unit.config.train.num_steps
        loss = 1.0 + 3.0 / size**0.5 + 20.0 / (num_steps * 6400) ** 0.3
        curve = ((num_steps // 2, 9.0), (num_steps, loss))
        return Result(unit.name, unit.overrides, "done", loss, loss, curve, 1000 * size, 1.0)

    notes: list[str] = []
    monkeypatch.setattr(WorkUnit, "read_result", read_result)
    monkeypatch.setattr(
        units_lib, "write_sweep_report", lambda *_, **settings: notes.extend(settings["notes"])
    )
    sizes = hyper.sweep("model.hidden_size", [8, 16, 32])
    sweep = hyper.product([sizes, hyper.sweep("train.num_steps", [10, 100, 1000])])
    write_report(units_of(sweep, tmp_path), tmp_path)
    note, skipped = notes
    assert "not compared (there is no checkpoint in " in skipped
    assert "fitted to 9 runs (8,000 to 32,000 parameters, 64,000 to 6,400,000 characters" in note
    notes.clear()
    write_report(
        units_of(hyper.product([sweep, hyper.sweep("model.cell", ["gru", "rnn"])])), tmp_path
    )
    assert not any("fitted" in note for note in notes)


def test_the_table_says_which_units_still_compile(tmp_path: Path) -> None:
    units = units_of(hyper.sweep("seed", range(3)), tmp_path)
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    with console.capture() as shown, SweepTable(units, console=console) as table:
        for unit in units[:2]:
            unit.write_status("running")
        row = {"step": 50, "epoch": 5.0, "seconds": 1.0, "train/loss": 2.0}
        (units[1].workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        table.update()
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["seed=0", "compiling"] in lines
    assert ["seed=1", "25%", "2.0000"] in lines
    assert not any("0%" in line for line in lines)


def test_a_result_is_read_from_whatever_a_run_has_left(tmp_path: Path) -> None:
    (unit,) = units_of([{"seed": 3}], tmp_path)
    empty = unit.read_result()
    assert (empty.status, empty.loss, empty.seconds, empty.curve) == ("waiting", None, None, ())
    unit.workdir.mkdir(parents=True)
    rows = [
        {"step": 1, "seconds": 1.0, "validation/loss": 2.0},
        {"step": 2, "seconds": 2.0, "validation/loss": 1.5},
        {"step": 3, "seconds": 3.0, "validation/loss": 1.75},
        {"step": 4, "seconds": 4.0, "validation/loss": None},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "sec'
    (unit.workdir / "metrics.jsonl").write_text(text)
    unit.write_status("diverged", message="the loss is nan")
    result = unit.read_result()
    assert (result.loss, result.best_loss, result.seconds) == (1.75, 1.5, 4.0)
    assert result.curve == ((1, 2.0), (2, 1.5), (3, 1.75))
    assert (result.status, result.message) == ("diverged", "the loss is nan")
    (unit.workdir / "unit.json").write_text("[1]")
    assert unit.read_result().status == "waiting"


def test_the_cells_of_the_comparison_are_all_of_equal_size() -> None:
    file = str(ROOT / "experiments" / "cells.py")
    units = make_units(
        load_experiment(file), call_experiment(file, "get_hyper", hyper), workdir=Path("s")
    )
    models = {}
    for unit in units:
        models.setdefault(unit.config.model.cell, unit.config.model)
    assert models.keys() == set(CELLS)
    sizes = set()
    for config in models.values():
        model = make_model(config, vocabulary_size=66)
        params = jax.eval_shape(partial(initialize_params, model), jax.random.key(0))
        sizes.add(sum(param.size for param in jax.tree.leaves(params)))
    assert max(sizes) / min(sizes) < 1.02
