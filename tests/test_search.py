"""The search: its decisions, its budget, what a killed one keeps, and what it says of mistakes."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT
from helpers import CallAt, slow
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from charrnn_jax.config import to_json
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.main import main
from charrnn_jax.sweeps import search as searching
from charrnn_jax.sweeps import space
from charrnn_jax.sweeps.plan import Plan, make_plan
from charrnn_jax.sweeps.search import PRUNERS, Search, create_search, is_pruned, run_trial
from charrnn_jax.sweeps.units import load_sweep
from charrnn_jax.workdir.json_lines import read_json_lines

RATES = {"optimizer.learning_rate": space.loguniform(1e-2, 10.0)}


@pytest.fixture
def short_config(tiny_config: ConfigDict) -> ConfigDict:
    """Four evaluations."""
    tiny_config.optimizer.name = "sgd"  # compiles fastest
    tiny_config.train.num_steps = 12
    tiny_config.train.evaluate_every_steps = 3
    tiny_config.sample.num_chars = 1
    return tiny_config


def start(config: ConfigDict, workdir: Path, *, num_trials: int, **options) -> Search:
    options = {"space": RATES, "sampler": "tpe", "pruner": "asha"} | options
    return create_search(make_plan(config, **options), workdir, num_trials=num_trials)


def finish(search: Search) -> None:
    """Trains what is left in this process: as one worker does."""
    for unit in search.remaining():
        run_trial(unit)
    search.tell_ended()


def outcome(workdir: Path) -> list[tuple]:
    """All that a search gave, less what a clock says."""
    results = [unit.read_result() for unit in load_sweep(workdir)]
    return [(each.name, each.status, each.message, each.curve) for each in results]


def study_of(workdir: Path) -> optuna.Study:
    file = optuna.storages.journal.JournalFileBackend(str(workdir / "search.journal"))
    storage = optuna.storages.JournalStorage(file)
    return optuna.load_study(study_name=None, storage=storage)


def test_asha_decides_as_successive_halving_by_hand() -> None:
    """After evaluations 1 and 3, only the best third of the trials so far continues."""
    curves = [  # loss after evaluations 1, 2, 3, 4; number of evaluations it may make
        ([3.0, 9.0, 2.0, 1.0], 4),  # the first is the best so far, at every rung
        ([3.1, 1.0, 1.0, 1.0], 1),  # 2nd of 2
        ([2.9, 9.0, 2.1, 1.0], 3),  # 1st of 3, then 2nd of 2
        ([2.95, 1.0, 1.0, 1.0], 1),  # 2nd of 4, of which one continues
        ([2.5, 9.0, 1.9, 9.0], 4),  # 1st of 5, then 1st of 3; evaluation 4 decides nothing
        ([2.8, 9.0, 1.95, 1.0], 3),  # 2nd of 6, of which two continue; then 2nd of 4
        ([math.nan, 1.0, 1.0, 1.0], 1),
    ]
    study = optuna.create_study(pruner=PRUNERS["asha"]())
    for losses, most in curves:
        number = study.ask().number
        made = 0
        for made, loss in enumerate(losses, start=1):
            if is_pruned(study, number, evaluation=made, loss=loss):
                study.tell(number, state=optuna.trial.TrialState.PRUNED)
                break
        assert made == most, losses


@pytest.mark.slow
def test_pruned_trials_stop_early_and_stay_in_the_results(
    short_config: ConfigDict, tmp_path: Path
) -> None:
    search = start(short_config, tmp_path, num_trials=5)
    finish(search)
    units = load_sweep(tmp_path)
    assert [unit.name for unit in units] == [unit.name for unit in search.units]
    results = [unit.read_result() for unit in units]
    steps = {"done": (3, 6, 9, 12)}
    pruned_after = {1: (3,), 3: (3, 6, 9)}
    for unit, result in zip(units, results, strict=True):
        trained = tuple(step for step, _ in result.curve)
        assert trained in ([steps["done"]] if result.status == "done" else pruned_after.values())
        rows = read_json_lines(unit.workdir / "metrics.jsonl")
        assert rows[-1]["step"] == trained[-1]
        overrides = unit.overrides["optimizer.learning_rate"]
        assert overrides == float(f"{overrides:.4g}")
    statuses = [result.status for result in results]
    assert len(results) == 5
    assert set(statuses) == {"done", "pruned"}
    told = {"COMPLETE": "done", "PRUNED": "pruned"}
    assert [told[trial.state.name] for trial in study_of(tmp_path).trials] == statuses
    best = search.best()
    assert best is not None
    done = [result.loss for result in results if result.status == "done"]
    assert best.read_result().loss == min(done)
    trained = sum(result.curve[-1][0] for result in results) / 12
    saved = 5 - trained
    assert search.notes()[1] == (
        f"Cost: the 5 trials took as many steps as {trained:.1f} full ones; "
        f"pruning saved the steps of {saved:.1f}."
    )


@pytest.mark.parametrize(
    "stop",
    [slow(Interrupted(signal.SIGINT, 0)), slow(KeyboardInterrupt())],
    ids=repr,
)
def test_stopped_search_continues_as_if_it_had_not_been(
    short_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """Stopped after the save of an evaluation that was not yet reported, or killed there."""
    finish(start(short_config, tmp_path / "one", num_trials=5))
    search = start(short_config, tmp_path / "two", num_trials=5)
    train, trained = searching.train, []

    def train_until_stopped(config: ConfigDict, workdir: Path, *, hooks: list[Any]) -> None:
        def stopping(*_: object) -> None:
            if len(trained) == 1:
                raise stop

        train(config, workdir, hooks=[CallAt(6, stopping), *hooks])
        trained.append(workdir)

    monkeypatch.setattr(searching, "train", train_until_stopped)
    with pytest.raises(type(stop)):
        finish(search)
    monkeypatch.setattr(searching, "train", train)
    finished = [unit for unit in search.units if unit.has_ended()]
    assert 0 < len(finished) < len(search.units) < 5
    times = [(unit.workdir / "metrics.jsonl").stat().st_mtime_ns for unit in finished]
    finish(Search(tmp_path / "two"))
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    assert times == [(unit.workdir / "metrics.jsonl").stat().st_mtime_ns for unit in finished]


@pytest.mark.slow
def test_diverged_and_failed_trials_count_and_a_space_may_be_exhausted(
    short_config: ConfigDict, tmp_path: Path
) -> None:
    """Of two and a half thousand characters there is no batch of a million."""
    values = {
        "optimizer.learning_rate": space.choice([1e-2, 1e30]),
        "data.batch_size": space.choice([8, 10**6]),
    }
    search = start(short_config, tmp_path, num_trials=9, space=values, sampler="random")
    finish(search)
    statuses = {
        (unit.overrides["optimizer.learning_rate"], unit.overrides["data.batch_size"]): unit
        for unit in search.units
    }
    assert {at: unit.read_result().status for at, unit in statuses.items()} == {
        (1e-2, 8): "done",
        (1e30, 8): "diverged",
        (1e-2, 10**6): "failed",
        (1e30, 10**6): "failed",
    }
    states = {(*t.params.values(),): t.state.name for t in study_of(tmp_path).trials[::-1]}
    assert states == {
        (1e-2, 8): "COMPLETE",
        (1e30, 8): "PRUNED",
        (1e-2, 10**6): "FAIL",
        (1e30, 10**6): "FAIL",
    }
    assert "DivergedError" in statuses[1e30, 8].read_result().message


def test_another_search_in_the_folder_is_refused_and_a_larger_budget_is_not(
    short_config: ConfigDict, tmp_path: Path
) -> None:
    start(short_config, tmp_path, num_trials=2)
    assert start(short_config, tmp_path, num_trials=3).num_trials == 3
    assert Search(tmp_path).num_trials == 3
    with pytest.raises(UserError, match="sampler 'tpe' -> 'random'"):
        start(short_config, tmp_path, num_trials=3, sampler="random")
    with pytest.raises(UserError, match="space "):
        start(short_config, tmp_path, num_trials=3, space={"seed": space.integers(0, 9)})
    short_config.train.num_steps = 24
    with pytest.raises(UserError, match=r"train\.num_steps 12 -> 24"):
        start(short_config, tmp_path, num_trials=3)
    with pytest.raises(UserError, match="holds no search"):
        Search(tmp_path / "elsewhere")


def test_a_trial_that_was_trained_to_the_end_is_not_pruned(
    short_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = start(short_config, tmp_path, num_trials=1)
    monkeypatch.setattr(searching, "is_pruned", lambda *_, evaluation, loss: evaluation == 4)
    finish(search)
    (unit,) = load_sweep(tmp_path)
    assert unit.read_result().status == "done"
    assert len(unit.read_result().curve) == 4


def test_values_have_four_digits_within_their_range() -> None:
    assert searching._rounded(0.0123456, space.uniform(0.0, 1.0)) == 0.01235
    assert searching._rounded(0.99996, space.uniform(0.0, 0.99997)) == 0.99997
    assert searching._rounded(12345, space.integers(0, 99999)) == 12345


def write_experiment(folder: Path, config: ConfigDict, *, search: str) -> str:
    """An experiment file; search: the body of its get_search, or "" for none."""
    file = folder / "experiment.py"
    text = "from charrnn_jax.config import from_json\n\n"
    text += f"def get_config(arg):\n    return from_json({to_json(config)!r})\n"
    text += f"\n\ndef get_search(space):\n    {search}\n" if search else ""
    file.write_text(text)
    return str(file)


@pytest.mark.slow
def test_command_trains_the_trials_in_processes_and_says_how_to_train_the_best(
    short_config: ConfigDict, tmp_path: Path
) -> None:
    body = "return {'optimizer.learning_rate': space.loguniform(1e-3, 1e-1)}"
    file, workdir = write_experiment(tmp_path, short_config, search=body), tmp_path / "s"
    command = [sys.executable, "-m", "charrnn_jax.main", "search", f"--config={file}"]
    command += ["--sampler=random", "--pruner=none", "--num_trials=2", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "random search with no pruning, seed 0, over\n  optimizer.learning_rate" in result.stdout
    assert "2 of 2 done" in result.stdout
    units = load_sweep(workdir)
    assert [unit.read_result().status for unit in units] == ["done", "done"]
    best = min(units, key=lambda unit: unit.read_result().loss)
    rate = best.overrides["optimizer.learning_rate"]
    again = f"charrnn train --config={file} --config.optimizer.learning_rate={rate}"
    assert again in result.stdout


@pytest.mark.parametrize(
    ("search", "flags", "message"),
    [
        ("", [], "has no function get_search"),
        ("return [1]", [], "get_search must return a dict"),
        ("return {'seed': 3}", [], "get_search: seed is 3; make it with space.uniform"),
        (
            "return {'optimizer.learning_rat': space.uniform(0.1, 1.0)}",
            [],
            "no field config.optimizer.learning_rat; did you mean config.optimizer.learning_rate?",
        ),
        (
            "return {'model.dropout': space.uniform(0.0, 1.0)}",
            [],
            "config.model.dropout is 1.0; it must be at least 0 and below 1",
        ),
        ("return {'model.hidden_size': space.uniform(8, 16)}", [], "must be a whole number"),
        ("return {3: space.integers(5, 9)}", [], "get_search sets 3"),
        (
            "return {'seed': space.integers(5, 3)}",
            [],
            "get_search: space.integers(5, 3): 5 is above 3; give the lower end first",
        ),
        ("return {'seed': space.integers(0, 3)}", ["--work_unit=0"], "what is '--work_unit=0'?"),
        ("return {'seed': space.integers(0, 3)}", ["--baseline=x"], "'x' is not FIELD=VALUE"),
        (
            "return {'seed': space.integers(0, 3)}",
            ["--config.data.validation_fraction=0"],
            "a search compares validation losses",
        ),
    ],
)
def test_mistakes_are_one_line(
    short_config: ConfigDict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    search: str,
    flags: list[str],
    message: str,
) -> None:
    file = write_experiment(tmp_path, short_config, search=search)
    start = ["search", f"--config={file}", f"--workdir={tmp_path / 's'}"]
    assert main([*start, "--num_trials=2", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_search_and_a_sweep_are_told_apart(
    short_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_experiment(tmp_path, short_config, search="return {'seed': space.integers(0, 3)}")
    assert main(["search", f"--config={file}", f"--workdir={tmp_path / 's'}"]) == 2
    assert "a budget: give --num_trials=N" in capsys.readouterr().err
    search = start(short_config, tmp_path / "s", num_trials=1)
    next(search.remaining())
    assert main(["sweep", f"--workdir={tmp_path / 's'}"]) == 2
    assert "holds a search: charrnn search" in capsys.readouterr().err
    assert main(["search", f"--workdir={tmp_path / 's'}", "--pruner=none"]) == 2
    assert "--pruner need --config" in capsys.readouterr().err


def test_dry_run_shows_the_space_and_writes_nothing(
    short_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "return {'model.cell': space.choice(['gru', 'lstm'])}"
    file = write_experiment(tmp_path, short_config, search=body)
    flags = [f"--workdir={tmp_path / 's'}", "--num_trials=2", "--dry_run"]
    assert main(["search", f"--config={file}", *flags]) == 0
    assert "model.cell: one of gru, lstm" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


@pytest.fixture
def no_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "charrnn_jax.sweeps.search")
    monkeypatch.delattr("charrnn_jax.sweeps.search")


def test_only_a_dry_run_works_without_optuna(
    no_optuna: None, short_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "return {'model.dropout': space.uniform(0.0, 0.5)}"
    file = write_experiment(tmp_path, short_config, search=body)
    command = ["search", f"--config={file}", f"--workdir={tmp_path / 's'}", "--num_trials=2"]
    assert main([*command, "--dry_run"]) == 0
    assert "over\n  model.dropout: from 0 to 0.5\n" in capsys.readouterr().out
    assert main(command) == 2
    assert 'pip install "charrnn_jax[search]"' in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


RANGE = st.tuples(st.integers(1, 2**31), st.integers(0, 2**31)).map(lambda x: (x[0], sum(x)))
VALUES = st.one_of(
    st.builds(lambda ends: space.uniform(*ends), RANGE),
    st.builds(lambda ends: space.loguniform(ends[0] / 7, ends[1] / 7), RANGE),
    st.builds(lambda ends, log: space.integers(*ends, log=log), RANGE, st.booleans()),
    st.builds(space.choice, st.lists(st.integers() | st.text() | st.booleans(), min_size=1)),
)


@given(VALUES)
def test_values_are_the_same_after_a_journal(values: space.Values) -> None:
    text = optuna.distributions.distribution_to_json(searching.to_distribution(values))
    distribution = optuna.distributions.json_to_distribution(text)
    assert searching.from_distribution(distribution) == values


def test_the_format_of_a_journal_stays(short_config: ConfigDict, tmp_path: Path) -> None:
    """So that a search begun by an earlier version can be resumed."""
    saved = {
        "optimizer.learning_rate": '{"name": "FloatDistribution", "attributes": '
        '{"step": null, "low": 0.01, "high": 10.0, "log": true}}',
        "model.dropout": '{"name": "FloatDistribution", "attributes": '
        '{"step": null, "low": 0.0, "high": 0.5, "log": false}}',
        "model.hidden_size": '{"name": "IntDistribution", "attributes": '
        '{"log": true, "step": 1, "low": 8, "high": 24}}',
        "model.cell": '{"name": "CategoricalDistribution", "attributes": '
        '{"choices": ["gru", "rnn"]}}',
    }
    options = {"sampler": "tpe", "pruner": "asha", "experiment": ["--config=e.py"]}
    config = short_config.to_dict()
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "search.journal"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), study_name="search"
    )
    study.set_user_attr("plan", {"config": config, "space": saved, **options})
    study.set_user_attr("num_trials", 3)
    asked = study.ask(
        {name: optuna.distributions.json_to_distribution(text) for name, text in saved.items()}
    )
    search = Search(tmp_path)
    values = {
        "optimizer.learning_rate": space.loguniform(1e-2, 10.0),
        "model.dropout": space.uniform(0.0, 0.5),
        "model.hidden_size": space.integers(8, 24, log=True),
        "model.cell": space.choice(["gru", "rnn"]),
    }
    assert search.plan == Plan(short_config, values, **options)
    assert search.units[0].config.model.hidden_size == asked.params["model.hidden_size"]
    assert start(short_config, tmp_path, num_trials=4, space=values).num_trials == 4
    assert searching.plan_to_dict(search.plan) == study.user_attrs["plan"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: space.uniform(2, 1), r"space.uniform\(2, 1\): 2 is above 1"),
        (lambda: space.uniform("a", 1), "'a' is not a finite number"),
        (lambda: space.uniform(0.0, math.nan), "nan is not a finite number"),
        (lambda: space.uniform(0.0, math.inf), "inf is not a finite number"),
        (lambda: space.uniform(0, 10**400), "0 is not a finite number"),
        (lambda: space.uniform(False, 1), "False is not a finite number"),
        (lambda: space.loguniform(0.0, 3.0), "must start above 0"),
        (lambda: space.loguniform(-1.0, 3.0), "must start above 0"),
        (lambda: space.integers(0, 3, log=True), "must start above 0"),
        (lambda: space.integers(1, 2.5), "2.5 is not a whole number"),
        (lambda: space.integers(1, None), "None is not a whole number"),
        (lambda: space.choice([]), "no values"),
        (lambda: space.choice("gru"), r"space.choice\('gru'\): give a list of values"),
        (lambda: space.choice(3), "give a list of values"),
        (lambda: space.choice([{}]), "of type dict: give numbers, texts"),
        (lambda: space.Integers(5, 3), "5 is above 3"),
    ],
)
def test_wrong_ranges_are_one_line(make: Callable[[], space.Values], message: str) -> None:
    with pytest.raises(UserError, match=f"^get_search: .*{message}") as error:
        make()
    assert "\n" not in str(error.value)


def test_sweep_json_holds_what_was_begun(short_config: ConfigDict, tmp_path: Path) -> None:
    """It is written before a worker starts, which reads its unit from it."""
    search = start(short_config, tmp_path, num_trials=3)
    assert json.loads((tmp_path / "sweep.json").read_text())["sweep"] == []
    unit = next(search.remaining())
    assert load_sweep(tmp_path)[0].overrides == unit.overrides


@pytest.mark.slow
def test_values_that_do_not_go_together_are_never_tried(
    short_config: ConfigDict, tmp_path: Path
) -> None:
    choices = {
        "model.implementation": space.choice(["scan"]),
        "model.dtype": space.choice(["bfloat16", "float32"]),
    }
    plan = make_plan(short_config, choices, sampler="random", pruner="none")
    search = create_search(plan, tmp_path, num_trials=2)
    for unit in search.remaining():
        unit.write_status("done")
    assert [unit.config.model.dtype for unit in Search(tmp_path).units] == ["float32"]
