"""`train.max_seconds`, with a clock that only training moves."""

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import signal_at
from ml_collections import ConfigDict

from charrnn_jax.config import override_values
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.registry import TRAIN_STEPS
from charrnn_jax.training.hooks import Evaluate
from charrnn_jax.training.loop import train
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.replicas import program_key, train_replicas
from charrnn_jax.training.schedules import make_schedule
from charrnn_jax.training.time_limit import TimeLimit
from charrnn_jax.training.train_step import TrainState
from charrnn_jax.workdir.checkpoints import Checkpoints, steps
from charrnn_jax.workdir.json_lines import read_json_lines

STEP, EVALUATION, SAVE = 1.0, 5.0, 2.0  # seconds that each takes by the clock of the tests


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that steps, evaluations and saves move; its only entry is the time."""
    now = [100.0]

    def taking(seconds: Callable[..., float], function: Callable[..., Any], *args: Any, **kw: Any):
        now[0] += seconds(*args)
        return function(*args, **kw)

    def of_steps(recorder: Recorder) -> float:
        return STEP * recorder._pending[1] if recorder._pending else 0.0

    def move(owner: type, name: str, seconds: Callable[..., float]) -> None:
        function = partial(taking, seconds, getattr(owner, name))
        monkeypatch.setattr(owner, name, lambda *args, **kw: function(*args, **kw))

    move(Recorder, "flush", of_steps)
    move(Evaluate, "__call__", lambda *_: EVALUATION)
    move(Checkpoints, "save", lambda *_: SAVE)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def limited(tiny_config: ConfigDict) -> ConfigDict:
    tiny_config.train.max_seconds, tiny_config.train.num_epochs = 60.0, 10
    tiny_config.train.evaluate_every_steps, tiny_config.train.log_every_steps = 10, 1
    tiny_config.train.steps_per_call = 2
    tiny_config.optimizer.schedule, tiny_config.optimizer.warmup_steps = "linear", 5
    return tiny_config


def test_steps_end_so_that_the_last_evaluation_and_checkpoint_fit_and_schedules_follow_the_time(
    limited: ConfigDict, tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    limited.train.sampled_inputs = "linear"
    traces: list[float] = []
    standard = TRAIN_STEPS["standard"]

    def counted(state: TrainState, batch: Any, *, hyper: Any = None) -> Any:
        traces.append(clock[0])
        return standard(state, batch, hyper=hyper)

    start = clock[0]
    state = train(limited, tmp_path, train_step=counted)
    last = int(state.step)
    assert len(traces) == 1  # nothing is compiled twice
    assert 60 - 2 * STEP - EVALUATION - SAVE <= clock[0] - start <= 60
    assert steps(tmp_path)[-1] == last
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows if "validation/loss" in r] == [*range(10, last, 10), last]
    timed = [row for row in rows if "train/progress" in row]
    assert [row["step"] for row in timed] == list(range(1, last + 1))
    progress = [row["train/progress"] for row in timed]
    assert progress[0] == 0
    assert 0.85 < progress[-1] < 1  # an evaluation, a checkpoint and two calls are 0.15
    for row, part in zip(timed, progress, strict=True):
        assert row["train/sampled_share"] == pytest.approx(0.5 * part)
        schedule = make_schedule(limited.optimizer, num_steps=9, progress=part)
        np.testing.assert_allclose(row["train/learning_rate"], schedule(row["step"] - 1), rtol=1e-5)
    assert timed[-1]["train/learning_rate"] < 0.15 * limited.optimizer.learning_rate
    assert (
        f"1 min 0 s of train.max_seconds are over, after {last:,} steps" in capsys.readouterr().out
    )
    train(limited, tmp_path)
    assert "Nothing is left to train" in capsys.readouterr().out
    assert rows == read_json_lines(tmp_path / "metrics.jsonl")
    state = train(override_values(limited, {"train.max_seconds": 80.0}), tmp_path)
    assert last + 10 < int(state.step) < last + 20


@pytest.mark.slow
def test_the_rate_that_is_recorded_is_the_one_that_was_applied(
    limited: ConfigDict, tmp_path: Path, clock: list[float]
) -> None:
    """With "sgd", the size of an update is the rate times that of the gradient."""
    limited.optimizer.name, limited.train.num_steps, limited.train.steps_per_call = "sgd", 30, 1
    train(limited, tmp_path)
    rows = [r for r in read_json_lines(tmp_path / "metrics.jsonl") if "train/progress" in r]
    sizes = [row["train/update_ratio"] / row["train/gradient_norm"] for row in rows]
    rates = [row["train/learning_rate"] for row in rows]
    assert len(rows) == 30  # the steps are over before the time
    assert rows[-1]["train/progress"] == pytest.approx(29 / 30)
    np.testing.assert_allclose(np.divide(sizes, sizes[0]), np.divide(rates, rates[0]), rtol=0.02)


@pytest.mark.slow
def test_a_resumed_run_has_the_time_that_is_left(
    limited: ConfigDict, tmp_path: Path, clock: list[float], heeded_signals: None
) -> None:
    start = clock[0]
    with pytest.raises(Interrupted):
        train(limited, tmp_path, hooks=[signal_at(17, signal.SIGTERM)])
    used = clock[0] - start
    clock[0] += 1000.0  # between the sessions
    start = clock[0]
    train(limited, tmp_path)
    assert 60 - 2 * STEP - EVALUATION - SAVE <= used + clock[0] - start <= 60 + SAVE


def test_a_run_with_a_time_limit_is_trained_alone_by_a_step_that_takes_the_progress(
    limited: ConfigDict, tmp_path: Path
) -> None:
    other = override_values(limited, {"seed": 1})
    assert program_key(limited) != program_key(other)
    with pytest.raises(UserError, match="a run with a time limit must be trained alone"):
        train_replicas([limited, other], [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="your own train step has no argument hyper"):
        train(limited, tmp_path / "c", train_step=lambda state, batch: (state, {}))
    assert not list(tmp_path.iterdir())


def test_the_time_for_steps_is_what_hooks_and_the_call_that_runs_leave() -> None:
    limit = TimeLimit(100.0, hook_seconds={"Evaluate": 15.0, "Save": 3.0}, call_seconds=1.0)
    assert [limit.fraction(seconds) for seconds in (0.0, 40.0, 80.0, 90.0)] == [0.0, 0.5, 1.0, 1.0]
    assert TimeLimit(10.0, hook_seconds={"Evaluate": 15.0}).fraction(0.0) == 1.0
    assert TimeLimit(0.0).fraction(1e9) == 0.0
    assert not TimeLimit(0.0, ended=50.0).has_ended(70.0)
    saved = TimeLimit(50.0, ended=50.0).to_dict()
    assert [TimeLimit.resume(s, saved).has_ended(49.0) for s in (40.0, 50.0, 60.0)] == [1, 1, 0]
