import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT
from helpers import (
    CallAt,
    assert_bitwise_equal,
    assert_same_run,
    rows_without_time,
    signal_at,
    slow,
)
from ml_collections import ConfigDict

from charrnn_jax.config import default_config, flatten, override_values, to_json
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import Interrupted, TrainingError, UserError
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.evaluation.protocols import Carried, evaluate
from charrnn_jax.generation.rules import Temperature
from charrnn_jax.generation.sampler import generate
from charrnn_jax.models.char_rnn import make_model
from charrnn_jax.models.regularisers.regulariser import Regulariser
from charrnn_jax.registry import HOOKS, LOSSES, REGULARISERS, RULES, TRAIN_STEPS
from charrnn_jax.training import dispatch, interrupt, setup
from charrnn_jax.training.loop import train
from charrnn_jax.training.optimizer import make_optimizer
from charrnn_jax.training.progress import describe_initial_loss, describe_time_left
from charrnn_jax.training.train_step import (
    TrainState,
    TrainStep,
    create_train_state,
    train_step,
)
from charrnn_jax.workdir import checkpoints as checkpoints_lib
from charrnn_jax.workdir import json_lines
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.json_lines import JsonLines, RowsWritten, read_json_lines
from charrnn_jax.workdir.run import load_run


@pytest.mark.parametrize(
    ("batching", "steps_per_call"),
    [
        ("lanes", 1),
        slow("chunks", 4),
        slow("chunks", 1),
        slow("lanes", 4),
    ],
)
def test_resume_is_bitwise_identical(
    tiny_config: ConfigDict,
    tmp_path: Path,
    heeded_signals: None,
    batching: str,
    steps_per_call: int,
) -> None:
    """Parameters, optimizer state, carry, metrics and samples; stops lie in and across epochs."""
    tiny_config.data.batching = batching
    tiny_config.model.dropout = 0.2
    tiny_config.optimizer.schedule = "cosine"
    tiny_config.optimizer.warmup_steps = 5
    tiny_config.optimizer.clip_norm = 0.5
    tiny_config.train.num_epochs = 3
    tiny_config.train.evaluate_every_steps = 15
    tiny_config.train.steps_per_call = steps_per_call
    in_one_go = train(tiny_config, tmp_path / "one")
    for evaluated in (15, 45):
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config, tmp_path / "many", hooks=[signal_at(evaluated)])
        assert stopped.value.exit_code == 130
        assert evaluated < stopped.value.step <= evaluated + steps_per_call
        assert checkpoints_lib.steps(tmp_path / "many")[-1] == stopped.value.step
    in_many_goes = train(tiny_config, tmp_path / "many")
    assert_bitwise_equal(in_one_go, in_many_goes)
    assert_same_run(tmp_path / "one", tmp_path / "many")
    # A finished run has nothing to do, and loses nothing.
    assert_bitwise_equal(train(tiny_config, tmp_path / "one"), in_one_go)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_training_after_its_state_was_saved(
    tiny_config: ConfigDict, tmp_path: Path, heeded_signals: None, number: signal.Signals
) -> None:
    def not_caught(*_: object) -> None:
        pytest.fail(f"{number.name} reached the handler of before")

    tiny_config.train.num_steps, tiny_config.train.steps_per_call = 8, 1
    tiny_config.train.evaluate_every_steps = 3
    signal.signal(number, not_caught)
    with pytest.raises(Interrupted) as stopped:
        train(tiny_config, tmp_path, hooks=[signal_at(3, number)])
    assert (stopped.value.exit_code, stopped.value.step) == (128 + number, 4)
    assert load_run(tmp_path, checkpoint="latest").step == 4
    assert signal.getsignal(number) == not_caught


def test_a_second_signal_ends_training_at_once_and_an_ignored_one_does_nothing(
    tiny_config: ConfigDict,
    tmp_path: Path,
    heeded_signals: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_config.train.num_steps, tiny_config.train.steps_per_call = 5, 1
    tiny_config.train.evaluate_every_steps = 3

    def twice(*_: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):  # signals of one moment are one wish
        train(tiny_config, tmp_path / "once", hooks=[CallAt(3, twice)])
    assert checkpoints_lib.steps(tmp_path / "once") == [3, 4]
    monkeypatch.setattr(interrupt, "_SAME_WISH_SECONDS", 0.0)
    with pytest.raises(SystemExit) as ended:
        train(tiny_config, tmp_path, hooks=[CallAt(3, twice)])
    assert ended.value.code == 143
    assert checkpoints_lib.steps(tmp_path) == [3]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    state = train(tiny_config, tmp_path / "ignored", hooks=[signal_at(3, signal.SIGHUP)])
    assert int(state.step) == 5


def test_seconds_continue_after_a_resume_and_those_of_pauses_count_for_no_speed(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock leaps by 1,000 seconds while a checkpoint is saved."""
    clock, save, leaps = time.perf_counter, Checkpoints.save, []

    def slow_save(*args, **kwargs) -> None:
        save(*args, **kwargs)
        leaps.append(1000.0)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(leaps))
    monkeypatch.setattr(Checkpoints, "save", slow_save)
    tiny_config.train.checkpoint_every_steps = 7
    for num_steps in (14, 28):
        tiny_config.train.num_steps = num_steps
        train(tiny_config, tmp_path)
    assert len(leaps) == 4
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    by_step = {row["step"]: row for row in rows if "train/loss" in row}
    # The leap after step 14 was saved belongs to neither process.
    assert [by_step[step]["seconds"] // 1000 for step in (7, 14, 21, 28)] == [0, 1, 1, 2]
    for step in (14, 21, 28):
        assert by_step[step]["train/chars_per_second"] > 7 * 8 * 20 / 1000
    (epoch,) = (row for row in rows if "epoch/train_seconds" in row)
    assert 0 < epoch["epoch/train_seconds"] < 1000


@pytest.mark.slow
def test_terminated_and_killed_process_resumes_bitwise(
    tiny_config: ConfigDict, tmp_path: Path, heeded_signals: None
) -> None:
    """SIGTERM saves and exits 143; SIGKILL loses only what came after the last checkpoint."""
    tiny_config.train.num_epochs = 5
    tiny_config.train.checkpoint_every_steps = 5
    tiny_config.train.sample_every_steps = 10_000
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from charrnn_jax.config import from_json\n"
        f"def get_config(arg=''): return from_json({to_json(tiny_config)!r})\n"
    )
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "charrnn_jax.main", f"--config={experiment}"]

    def start_then(number: signal.Signals) -> int:
        before = checkpoints_lib.steps(workdir)
        with subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and checkpoints_lib.steps(workdir) == before:
                time.sleep(0.02)
            process.send_signal(number)
        return process.returncode

    assert start_then(signal.SIGTERM) == 143
    stopped_at = checkpoints_lib.steps(workdir)[-1]
    assert start_then(signal.SIGKILL) == -signal.SIGKILL
    assert checkpoints_lib.steps(workdir)[-1] >= stopped_at
    resumed = train(tiny_config, workdir)
    undisturbed = train(tiny_config, tmp_path / "undisturbed")
    assert_bitwise_equal(resumed, undisturbed)
    assert rows_without_time(workdir) == rows_without_time(tmp_path / "undisturbed")


@pytest.mark.parametrize("steps_per_call", [slow(1), 4])
def test_training_compiles_once(
    tiny_config: ConfigDict, tmp_path: Path, caplog: pytest.LogCaptureFixture, steps_per_call: int
) -> None:
    """One trace and one program in a run, resumed or not, whatever the length of its calls."""
    traces = []

    def counted(state: TrainState, batch):
        traces.append(batch.inputs.shape)
        return train_step(state, batch)

    tiny_config.train.steps_per_call = steps_per_call
    tiny_config.train.checkpoint_every_steps = 7
    for num_steps in (30, 45):
        tiny_config.train.num_steps = num_steps
        caplog.clear()
        with jax.log_compiles():
            train(tiny_config, tmp_path, train_step=counted)
        # The program of the steps is the one that takes the text, 3,690 ids.
        compiled = [line for line in caplog.messages if line.startswith("Compiling ")]
        assert sum("uint8[3690]" in line for line in compiled) == 1
    assert traces == [(8, 20)] * 2


def test_steps_together_and_text_from_the_host_train_the_same_model(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def params_of(name: str, steps_per_call: int):
        tiny_config.train.steps_per_call = steps_per_call
        return train(tiny_config, tmp_path / name).params

    tiny_config.train.num_steps = 25
    one, many = params_of("one", 1), params_of("many", 8)
    monkeypatch.setattr(dispatch, "IN_MEMORY_BYTES", 0)  # of the device
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, params_of("from-host", 8), one)
    jax.tree.map(close, many, one)
    assert len(rows_without_time(tmp_path / "one")) == len(rows_without_time(tmp_path / "many"))


@pytest.mark.slow
def test_own_loss_and_own_step_are_used(tiny_config: ConfigDict, tmp_path: Path) -> None:
    standard = train(tiny_config, tmp_path / "standard")

    def own_step(state: TrainState, batch):
        new_state, metrics = train_step(state, batch)
        return new_state, {**metrics, "first_token": batch.inputs[0, 0]}

    own = train(tiny_config, tmp_path / "step", train_step=own_step)
    assert_bitwise_equal(own, standard)
    rows = read_json_lines(tmp_path / "step" / "metrics.jsonl")
    assert any("train/first_token" in row for row in rows)

    def smoothed(logits: jax.Array, targets: jax.Array) -> jax.Array:
        labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), 0.1)
        return optax.softmax_cross_entropy(logits, labels)

    other = train(tiny_config, tmp_path / "loss", loss_fn=smoothed)
    assert not np.array_equal(other.params["dense"]["kernel"], standard.params["dense"]["kernel"])
    with pytest.raises(UserError, match="give only one"):
        train(tiny_config, tmp_path / "both", train_step=own_step, loss_fn=smoothed)


def poisoned(*bad_steps: int, name: str = "loss") -> TrainStep:
    """The standard step, whose loss or gradient, and new parameters, are NaN in some steps."""

    def step(state: TrainState, batch):
        new_state, metrics = train_step(state, batch)
        poison = jnp.where(jnp.isin(new_state.step, jnp.array(bad_steps)), jnp.nan, 0.0)
        if name == "loss":
            loss = metrics["loss"]
            metrics["loss"] = type(loss)(loss.total + poison, loss.count)
        else:
            metrics[name] += poison
        params = jax.tree.map(lambda leaf: leaf + poison, new_state.params)
        return replace(new_state, params=params), metrics

    return step


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_a_step_that_is_not_finite_ends_training_and_keeps_the_last_checkpoint(
    tiny_config: ConfigDict, tmp_path: Path, name: str
) -> None:
    """The line names step, rate and checkpoint; with "skip" the same workdir trains to its end."""
    with pytest.raises(
        TrainingError, match=r"is nan at step 28, with a learning rate of 0.01"
    ) as e:
        train(tiny_config, tmp_path, train_step=poisoned(28, name=name))
    assert "The last checkpoint is 21" in str(e.value)
    assert checkpoints_lib.steps(tmp_path) == [21]  # steps an epoch
    assert load_run(tmp_path).step == 21
    tiny_config.train.on_nonfinite = "skip"
    state = train(tiny_config, tmp_path, train_step=poisoned(28, name=name))
    assert int(state.step) == 42
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_skipped_steps_change_nothing_but_the_count_and_too_many_end_training(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """The first step alone, then only poisoned ones: the state is that after one step."""
    tiny_config.train.on_nonfinite, tiny_config.train.num_steps = "skip", 9
    tiny_config.train.max_skipped_steps, tiny_config.train.averaging = 8, "ema"
    bad = poisoned(*range(2, 30))
    state = train(tiny_config, tmp_path / "skipped", train_step=bad)
    tiny_config.train.num_steps = 1
    one = train(tiny_config, tmp_path / "one")
    assert int(state.step) == 9
    assert_bitwise_equal(replace(state, step=one.step), one)
    rows = read_json_lines(tmp_path / "skipped" / "metrics.jsonl")
    assert [r["train/skipped_in_a_row"] for r in rows if "train/skipped_in_a_row" in r] == [
        *range(1, 9)
    ]
    tiny_config.train.num_steps = 20  # those of before the resume count
    with pytest.raises(TrainingError, match=r"at step 10,.*, like the 8 before it"):
        train(tiny_config, tmp_path / "skipped", train_step=bad)


def test_training_that_diverges_without_a_nan_is_ended(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "sgd", 1e6
    with pytest.raises(TrainingError, match=r"diverges: the mean loss up to step 7 .* 3 times"):
        train(tiny_config, tmp_path / "run")
    assert checkpoints_lib.steps(tmp_path / "run") == []
    tiny_config.train.max_loss_ratio = 0.0
    assert int(train(tiny_config, tmp_path / "off").step) == 42


def test_a_finished_run_that_is_started_again_keeps_its_config_and_says_so(
    tiny_config: ConfigDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_config.train.num_steps = 4
    state = train(tiny_config, tmp_path)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = override_values(tiny_config, {"optimizer.learning_rate": 0.5, "train.num_steps": 3})
    assert_bitwise_equal(train(other, tmp_path), state)
    assert "Nothing is left to train" in caplog.text
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def test_a_resume_that_changes_the_learning_rate_says_from_what_to_what(
    tiny_config: ConfigDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_config.train.num_steps, tiny_config.optimizer.schedule = 4, "linear"
    train(tiny_config, tmp_path)
    tiny_config.train.num_steps = 8
    train(tiny_config, tmp_path)
    assert "the learning rate there was 0, and is now 0.005" in caplog.text
    caplog.clear()
    tiny_config.train.num_epochs = 5  # not used
    train(tiny_config, tmp_path)
    assert "learning rate there" not in caplog.text


def test_run_of_one_implementation_goes_on_with_another(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.model.implementation = "scan"
    middle = train(tiny_config, tmp_path)
    tiny_config.model.implementation, tiny_config.train.num_epochs = "fused", 3
    end = train(tiny_config, tmp_path)
    assert int(end.step) > int(middle.step) == load_run(tmp_path, checkpoint=42).step


@pytest.mark.parametrize(
    ("step_fn", "message"),
    [
        (lambda state, batch: (state, {}), '"loss" as a CrossEntropy'),
        (lambda state, batch: (state, {"loss": jnp.zeros(())}), '"loss" as a CrossEntropy'),
        (lambda state, batch: (state.params, {"loss": CrossEntropy(1.0, 1)}), "same structure"),
        (lambda state, batch: (state, {"loss": CrossEntropy(1.0, 1)}), "state.step by one"),
    ],
)
def test_own_step_that_the_loop_cannot_use_is_refused(
    tiny_config: ConfigDict, tmp_path: Path, step_fn, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path, train_step=step_fn)


def test_workdir_of_another_config_is_refused_and_untouched(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    train(tiny_config, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    tiny_config.model.hidden_size = 17
    with pytest.raises(UserError, match=r"model.hidden_size 16 -> 17"):
        train(tiny_config, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    tiny_config.model.hidden_size = 16
    tiny_config.train.num_epochs = 3
    assert int(train(tiny_config, tmp_path).step) == 63


MAY_CHANGE = {
    "data.path",
    "model.implementation",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.decay_fraction",
    "evaluation.batch_size",
    *(f"sample.{name}" for name in default_config().sample),
    *(
        f"train.{name}"
        for name in default_config().train
        if name
        not in (
            *("init_from", "loss", "step", "regularisers"),
            *("activation_penalty", "temporal_penalty", "averaging"),
            *("length_warmup_steps", "initial_length"),
            *("sampled_inputs", "sampled_share", "rollout_length"),
        )
    ),
}
OTHER_VALUES = {
    "data.corpus": "text8",
    "data.offline_corpus": "python-stdlib",
    "data.vocabulary": "bytes",
    "data.batching": "chunks",
    "data.offset": "random",
    "model.cell": "lstm",
    "model.dropout_noise": "locked",
    "model.residual": "add",
    "model.readout": "all",
    "model.output_embedding": "tied",
    "model.output_dropout": 0.0,
    "model.dtype": "bfloat16",
    "model.implementation": "scan",
    "optimizer.name": "sgd",
    "optimizer.schedule": "linear",
    "train.init_from": "elsewhere",
    "train.num_steps": 3,
    "train.max_seconds": 1e6,
    "train.on_nonfinite": "skip",
    "train.data_devices": 2,
    "train.model_devices": 1,  # there are two in all
    "train.loss": "other",
    "train.regularisers": "other",
    "train.step": "other",
    "train.hooks": "other",
    "train.averaging": "ema",
    "train.sampled_inputs": "linear",
    "train.gradient_noise": "on",
    "evaluation.protocol": "carried",
    "sample.prompt": "fox",
    "sample.rules": "other",
}


def test_a_run_is_resumed_with_other_values_of_some_fields_and_of_no_others(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol and the window, too, are part of it: losses under two would be compared."""
    monkeypatch.setattr(setup, "can_train_in_bfloat16", lambda: True)  # old jaxlibs cannot
    hook, rule = CallAt(1, lambda *_: None), Temperature(1.0)
    known = {LOSSES: cross_entropy, TRAIN_STEPS: train_step, HOOKS: lambda _: hook}
    known[RULES] = lambda _: rule
    known[REGULARISERS] = lambda _: Regulariser()
    for registry, code in known.items():
        monkeypatch.setitem(registry._registered, "other", code)
    tiny_config.data.batching, tiny_config.train.num_steps = "lanes", 2
    train(tiny_config, tmp_path / "run")
    text = tmp_path / "moved.txt"
    text.write_bytes(Path(tiny_config.data.path).read_bytes())
    others = {"data.path": str(text), **OTHER_VALUES}
    for name, value in flatten(tiny_config).items():
        if name not in others:
            others[name] = value + 1 if isinstance(value, int) else value / 2 or 0.05
    for name in others.keys() - MAY_CHANGE:
        other = override_values(tiny_config, {name: others[name]})
        with pytest.raises(UserError, match=re.escape(f"another config ({name} ")):
            train(other, tmp_path / "run")
    other = override_values(tiny_config, {name: others[name] for name in MAY_CHANGE})
    assert int(train(other, tmp_path / "run").step) == 3


@pytest.mark.slow
def test_a_resumed_run_keeps_the_vocabulary_that_it_was_saved_with(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """Not the one that its text would give now, whose ids are others."""
    tiny_config.train.num_steps = 1
    train(tiny_config, tmp_path / "plain")
    metadata = checkpoints_lib.read_metadata(tmp_path / "plain", 1)
    characters = "".join(sorted({"!", *metadata.vocabulary["characters"]}))
    vocabulary = Vocabulary(characters)
    state = create_train_state(
        make_model(tiny_config.model, vocabulary_size=vocabulary.size),
        make_optimizer(tiny_config.optimizer, num_steps=1),
        seed=0,
        batch_size=8,
    )
    with Checkpoints(tmp_path / "run") as checkpoints:
        saved = replace(metadata, vocabulary=vocabulary.to_dict(), rows={})
        params, rest = state.to_trees()
        checkpoints.save(params, {**rest, "step": jnp.int32(1)}, metadata=saved)
    tiny_config.train.num_steps = 2
    state = train(tiny_config, tmp_path / "run")
    assert state.params["embedding"]["embedding"].shape[0] == vocabulary.size
    run = load_run(tmp_path / "run", checkpoint="latest")
    assert (run.step, run.vocabulary) == (2, vocabulary)
    dataset = run.load_dataset()
    assert dataset.vocabulary == vocabulary
    text = Path(tiny_config.data.path).read_text()
    assert dataset.splits.tokens.tolist() == [1 + characters.index(char) for char in text]


def test_nothing_is_written_when_the_prompt_or_the_text_cannot_be_used(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.sample.prompt = "漢字"
    with pytest.raises(UserError, match="'漢' at position 0"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tiny_config.sample.prompt = ""
    tiny_config.data.batch_size = 1000
    with pytest.raises(UserError, match="too few for one batch"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_model_learns_a_text_by_heart(tiny_config: ConfigDict, tmp_path: Path) -> None:
    """A text that repeats has an entropy rate of 0; greedy generation then goes on with it."""
    tiny_config.data.batching = "lanes"
    tiny_config.data.batch_size = 4
    tiny_config.model.hidden_size = 64
    tiny_config.train.num_epochs = 8
    tiny_config.optimizer.clip_norm = 1.0
    tiny_config.evaluation.protocol = "carried"
    train(tiny_config, tmp_path)
    run = load_run(tmp_path)
    splits = run.load_dataset().splits
    loss = evaluate(
        run.params, splits.with_context("validation"), model=run.model, protocol=Carried()
    )
    assert loss.nats_per_char < 0.1
    (sample,) = generate(
        run.params,
        ["The quick brown"],
        model=run.model,
        vocabulary=run.vocabulary,
        num_chars=60,
        temperature=0.0,
    )
    assert sample.text == " fox jumps over the lazy dog; 'twas brillig, and the slithy "[:60]


# --- what is shown and written ------------------------------------------------------------------


def test_a_part_of_an_epoch_has_no_row_of_its_own(tiny_config: ConfigDict, tmp_path: Path) -> None:
    tiny_config.train.num_steps = 25
    train(tiny_config, tmp_path)
    rows = rows_without_time(tmp_path)
    assert [row["step"] for row in rows if "epoch/train_loss" in row] == [21]
    assert [row["step"] for row in rows if "validation/loss" in row] == [21, 25]


def test_initial_loss_far_off_is_a_warning() -> None:
    assert "as it should be" in describe_initial_loss(4.1896, vocabulary_size=66)
    assert "exp(loss) = 65.99" in describe_initial_loss(4.1895, vocabulary_size=66)
    for loss in (2.0, 9.0, 1e9):
        assert describe_initial_loss(loss, vocabulary_size=66).startswith("WARNING")


def test_long_run_names_the_short_one_and_says_how_to_stop() -> None:
    text = describe_time_left(4000.0, steps=3000)
    assert "1 h 6 min" in text
    assert "--config=quick" in text
    assert "Ctrl-C" in text
    assert "quick" not in describe_time_left(60.0, steps=3000)


def test_json_lines_survive_a_killed_writer_and_drop_what_is_repeated(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = JsonLines(file, keep_until_step=0)
    for step in range(1, 4):
        lines.write({"step": step, "text": "a\u2028\n\0\U0001f600", "loss": float("nan")})
    with open(file, "a") as out:
        out.write('{"step": 4, "text": "')
    with open(file, "ab") as out:
        out.write("й".encode()[:1])  # killed in the middle of a character
    JsonLines(file, keep_until_step=2).write({"step": 3})
    rows = read_json_lines(file)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["text"] == "a\u2028\n\0\U0001f600"
    assert rows[0]["loss"] is None
    json.loads(file.read_text().split("\n")[0], parse_constant=pytest.fail)


def test_rows_that_are_damaged_or_missing_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"step": 1}\n\0\0\xff\n{"step": true}\n[' + b"[" * 100_000 + b"\n")
    with pytest.warns(UserWarning, match="3 of its lines cannot be read and 1 rows up to step 5"):
        lines = JsonLines(file, keep_until_step=5, expected=RowsWritten(2, ""))
    assert file.read_text() == '{"step": 1}\n'
    lines.write({"step": 6})
    assert lines.written.num_rows == 2
    assert JsonLines(file, keep_until_step=6, expected=lines.written).written == lines.written
    file.write_text(file.read_text().replace("1", "2"))
    with pytest.warns(UserWarning, match="not those that were written"):
        JsonLines(file, keep_until_step=6, expected=lines.written)


def test_rows_that_find_no_room_are_lost_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning for all of them; half a line that was written does not spoil the next."""
    file = tmp_path / "rows.jsonl"
    lines = JsonLines(file, keep_until_step=0)

    def full(*_: object, **__: object) -> None:
        with open(file, "a") as out:
            out.write('{"step": 1, "te')
        raise OSError(28, "No space left on device")

    with (  # noqa: PT031
        monkeypatch.context() as patch,
        pytest.warns(UserWarning, match="rows are lost") as warned,
    ):
        patch.setattr(json_lines, "open", full, raising=False)
        lines.write({"step": 1})
        lines.write({"step": 2})
    assert len(warned) == 1
    lines.write({"step": 3})
    assert [row["step"] for row in read_json_lines(file)] == [3]
    assert lines.written.num_rows == 1


def test_a_first_loss_that_is_negative_or_comes_late_bounds_no_run_wrongly(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """Your own loss may be below zero and fall; and a first step may have been skipped."""
    tiny_config.train.num_steps, tiny_config.train.on_nonfinite = 21, "skip"

    def negative(logits, targets):
        return cross_entropy(logits, targets) * 9 - 30

    assert int(train(tiny_config, tmp_path / "own", loss_fn=negative).step) == 21
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "sgd", 1e6
    with pytest.raises(TrainingError, match="training diverges"):
        train(tiny_config, tmp_path / "late", train_step=poisoned(1))
