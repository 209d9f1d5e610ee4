import argparse
import ast
import itertools
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SENTENCE
from helpers import SMOKE, last_line_of_error, slow

import charrnn_jax
from charrnn_jax.commands.arguments import _default_workdir, load_config
from charrnn_jax.data.corpora import KNOWN_CORPORA
from charrnn_jax.evaluation.ngram import KneserNey
from charrnn_jax.evaluation.protocols import evaluate, make_protocol
from charrnn_jax.experiment import load_experiment
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.main import main
from charrnn_jax.messages import PROGRESS
from charrnn_jax.workdir.checkpoints import steps
from charrnn_jax.workdir.run import load_run

NUM_STEPS = "--config.train.num_steps"


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    own = [f"--config.data.path={text_file}", "--config.sample.prompt=The"]
    assert main([SMOKE, f"--workdir={workdir}", *own]) == 0
    return workdir


def test_train_shows_what_the_tutorial_shows(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [SMOKE, f"--workdir={tmp_path}", f"--config.data.path={text_file}"]
    assert main(["train", *arguments, "--config.sample.prompt=The"]) == 0
    out = capsys.readouterr().out
    for shown in (
        "Length of text: 4,100 characters",
        "33 unique characters",
        SENTENCE,
        "output shape",
        "sample, untrained model",
        "Initial loss 3.5",
        "about the vocabulary size of 34, as it should be",
        "steps on this device",
        "Epoch 2: train loss",
        "nats/char",
        "bits/char (cold)",
        "sample, step ",
        f"sample --workdir={tmp_path}\n",
        f"evaluate --workdir={tmp_path}\n",
    ):
        assert shown in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "samples.jsonl", "checkpoints"}


def test_train_suggests_no_evaluation_of_a_split_that_is_not_there(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [f"--config.data.path={text_file}", "--config.sample.prompt=The", NUM_STEPS + "=1"]
    whole = "--config.data.validation_fraction=0"
    assert main([SMOKE, f"--workdir={tmp_path / 'run'}", *own, whole]) == 0
    assert capsys.readouterr().out.endswith(f"charrnn sample --workdir={tmp_path / 'run'}\n")


def test_evaluate_writes_what_it_prints(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"--workdir={trained}"]) == 0
    out = capsys.readouterr().out
    assert main(["evaluate", f"--workdir={trained}", "--split=train", "--protocol=carried"]) == 0
    results = json.loads((trained / "evaluation.json").read_text())
    assert results.keys() == {"validation", "train"}
    assert results["train"]["losses"].keys() == {"carried"}
    for protocol in ("cold-256", "carried"):
        loss = results["validation"]["losses"][protocol]
        assert loss["num_chars"] == 410
        assert f"{loss['nats_per_char']:.4f} nats/char" in out
        assert math.isclose(loss["bits_per_char"], loss["nats_per_char"] / math.log(2))


def test_evaluation_file_never_mixes_the_losses_of_two_checkpoints(
    trained: Path, tmp_path: Path
) -> None:
    """Of one checkpoint the protocols add up; each loss is that of the checkpoint it stands by."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "evaluation.json").unlink(missing_ok=True)
    first, second = (load_run(workdir, checkpoint=step) for step in steps(workdir))
    tokens = first.load_dataset().splits.with_context("validation")
    names = {"carried": "carried", "cold": "cold-256"}
    for run, protocol, kept in (
        (second, "carried", ()),
        (first, "carried", ()),
        (first, "cold", ("carried",)),
        (second, "cold", ()),
        (second, "cold", ()),  # over a loss that is not its own any more
    ):
        command = ["evaluate", f"--workdir={workdir}", f"--checkpoint={run.step}"]
        assert main([*command, f"--protocol={protocol}"]) == 0
        entry = json.loads((workdir / "evaluation.json").read_text())["validation"]
        assert entry["step"] == run.step
        losses = {name: loss["nats_per_char"] for name, loss in entry["losses"].items()}
        expected = {}
        for name in (protocol, *kept):
            record = make_protocol(run.config.evaluation, name)
            loss = evaluate(run.params, tokens, model=run.model, protocol=record)
            expected[names[name]] = loss.nats_per_char
        assert losses == pytest.approx(expected, rel=1e-6)
        file = (workdir / "evaluation.json").read_text()
        if run is second:
            spoiled = file.replace(str(losses[names[protocol]]), "9.0")
            (workdir / "evaluation.json").write_text(spoiled)


def test_evaluate_shows_and_keeps_baselines_apart_from_the_losses(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "evaluation.json").unlink(missing_ok=True)
    assert main(["evaluate", f"--workdir={workdir}", "--interpolate=0.25"]) == 0
    out = capsys.readouterr().out
    run = load_run(workdir)
    splits = run.load_dataset().splits
    ngram = KneserNey.fit(splits["train"], order=6, vocabulary_size=run.vocabulary.size)
    tokens = splits.with_context("validation")
    entry = json.loads((workdir / "evaluation.json").read_text())["validation"]
    for protocol, window in (("cold-256", 256), ("carried", 0)):
        losses = ngram.losses(tokens, window=window)
        row = entry["baselines"][f"kneser-ney-6 {protocol}"]
        assert row["nats_per_char"] == pytest.approx(losses.mean())
        assert f"validation kneser-ney-6 {protocol}: {losses.mean():.4f} nats/char" in out
        record = make_protocol(run.config.evaluation, protocol.partition("-")[0])
        network = np.concatenate(list(record.losses(run.params, tokens, model=run.model)))
        both = -np.log(0.25 * np.exp(-network) + 0.75 * np.exp(-losses)).mean()
        assert entry["interpolated"][protocol]["nats_per_char"] == pytest.approx(both, rel=1e-5)
        assert f"validation {protocol} interpolated with kneser-ney-6: {both:.4f}" in out
    assert "validation kneser-ney-6 updated while reading: " in out
    assert run.losses()["validation"].keys() == {"cold-256", "carried"}
    assert main(["evaluate", f"--workdir={workdir}", "--protocol=cold", "--baseline=none"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    again = json.loads((workdir / "evaluation.json").read_text())["validation"]
    assert again["baselines"] == entry["baselines"]
    command = ["evaluate", f"--workdir={workdir}", "--protocol=carried", "--baseline_chars=500"]
    assert main(command) == 0
    note = "counts the last 500 of 3,690 characters of train"
    assert f"{note})" in capsys.readouterr().out
    again = json.loads((workdir / "evaluation.json").read_text())["validation"]
    assert again["baselines"]["kneser-ney-6 carried"]["note"] == note  # the new row has replaced it
    assert again["baselines"].keys() == entry["baselines"].keys()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--split=train"], "the n-gram model would have counted the split"),
        (["--baseline_chars=19"], "to choose the weight, 20 characters of training text are"),
    ],
)
def test_interpolation_that_is_not_possible_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert main(["evaluate", f"--workdir={trained}", "--interpolate", *flags]) == 2
    assert says in last_line_of_error(capsys)


def test_sample_is_deterministic_and_takes_several_prompts(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", f"--workdir={trained}", "--num_chars=30", "--seed=7"]
    several = [*command, "--prompt=The quick", "--prompt=fox", "--num_samples=2"]
    assert main(several) == 0
    first = capsys.readouterr()
    assert main(several) == 0
    assert capsys.readouterr().out == first.out
    samples = first.out.removesuffix("\n").split(f"\n{'_' * 80}\n")
    assert [len(sample) for sample in samples] == [39, 39, 33, 33]
    assert samples[0] != samples[1]
    assert "Run time: " in first.err
    assert "characters/s" in first.err
    assert main([*command, "--prompt=fox"]) == 0
    assert capsys.readouterr().out == samples[2] + "\n"


def test_score_agrees_with_its_characters(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", f"--workdir={trained}", f"--text={SENTENCE}", "--per_char"]) == 0
    *characters, summary = capsys.readouterr().out.splitlines()
    bits = [float(line.split("\t")[1].removesuffix(" bits")) for line in characters]
    assert [ast.literal_eval(line.split("\t")[0]) for line in characters] == list(SENTENCE[1:])
    assert math.isclose(np.mean(bits), float(summary.split()[2]), abs_tol=1e-4)
    file = tmp_path / "text.txt"
    file.write_text(SENTENCE)
    assert main(["score", f"--workdir={trained}", f"--text_file={file}"]) == 0
    assert capsys.readouterr().out.splitlines() == [summary]


def test_the_seed_of_a_command_is_that_of_its_text(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(trained)
    sampler = Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
    command = ["sample", f"--workdir={trained}", "--num_chars=30", "--prompt=The"]
    for seed in (7, 8):
        assert main([*command, f"--seed={seed}"]) == 0
        (sample,) = sampler.generate(["The"], num_chars=30, seed=seed)
        assert capsys.readouterr().out == f"The{sample.text}\n"


def test_without_arguments_the_first_steps_are_shown(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert "charrnn --config=quick" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"charrnn_jax {charrnn_jax.__version__}\n"


def test_presets_are_the_experiments_and_config_prints_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A file of the same name comes first."""
    assert main(["config"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(file.stem for file in (ROOT / "experiments").glob("*.py"))
    assert main(["config", "quick"]) == 0
    source = (ROOT / "experiments" / "quick.py").read_text(encoding="utf-8")
    assert capsys.readouterr().out == source
    monkeypatch.chdir(tmp_path)
    assert load_experiment("quick").model.hidden_size == 384
    Path("quick").write_text(source.replace("384", "48"), encoding="utf-8")
    assert load_experiment("quick").model.hidden_size == 48
    assert main(["config", "quikc"]) == 2
    assert "there is no preset 'quikc'" in last_line_of_error(capsys)


@pytest.mark.parametrize(("flag", "shown"), [("--quiet", False), ("--verbose", True)])
def test_messages_are_few_or_many(
    tmp_path: Path, capsys: pytest.CaptureFixture, flag: str, shown: bool
) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    try:
        assert main([f"{SMOKE}:builtin", workdir, "--config.train.num_steps=2", flag]) == 0
        out = capsys.readouterr().out
        assert ("saving a checkpoint of step 2" in out) is shown
        assert ("Corpus:" in out) is shown
        assert main(["score", workdir, "--text=def f():", "--quiet"]) == 0
        captured = capsys.readouterr()
        assert "nats/char" in captured.out
        assert not captured.err
    finally:
        PROGRESS.setLevel(logging.INFO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trian"],
            "no command 'trian'; the commands are train, evaluate, sample, score, report, "
            "neurons, compare, judge, sweep, search, export, import, check, config, corpora",
        ),
        (["train"], "--config is missing"),
        (["--config=absent.py"], "no experiment file 'absent.py'"),
        ([SMOKE + ":large"], "smoke.py knows :builtin, not :large"),
        ([SMOKE, "--config.model.hiden_size=3"], "did you mean config.model.hidden_size?"),
        ([SMOKE, "--config.model.hidden_size=0"], "config.model.hidden_size is 0"),
        ([SMOKE, "stray"], "what is 'stray'"),
        ([SMOKE, "--config.data.path=/absent"], "no file found at '/absent'"),
        ([SMOKE, "--config.data.path=TEXT"], "set another --config.sample.prompt"),
        ([SMOKE + ":builtin", "--workdir=/proc/run"], "/proc"),
        ([SMOKE, "--workdir=TEXT"], "is not a folder: give another --workdir"),
        ([SMOKE, "--config.data.path=.", "--workdir=run"], "is inside the folder of the text"),
        ([SMOKE, "--config.train.num_steps=99999999999"], "must be at most 2147483647"),
        ([str(SMOKE).replace("smoke", "quick") + ":lstm"], "quick.py takes no argument"),
        (["sample"], "which run?"),
        (["sample", "--workdir=/absent"], "there is no checkpoint in /absent"),
        (["sample", "--workdir=RUN", "--temperature=-1"], "'-1' is not a number of at least 0"),
        (["sample", "--workdir=RUN", "--temperature=nan"], "'nan' is not a number"),
        (["sample", "--workdir=RUN", "--num_chars=0"], "'0' is not a whole number of at least 1"),
        (["sample", "--workdir=RUN", "--prompt=été"], "'é' at position 0"),
        (["sample", "--workdir=RUN", "--checkpoint=3"], "has no checkpoint '3'"),
        (["sample", "--workdir=RUN", "--config.seed=1"], "what is '--config.seed=1'"),
        (["evaluate", "--workdir=RUN", "--split=test"], "has no test split"),
        (["evaluate", "--workdir=RUN", "--protocol=hot"], "'hot': no such protocol is registered"),
        (["score", "--workdir=RUN"], "one of the arguments --text --text_file is required"),
        (["score", "--workdir=RUN", "--text=T"], "give two or more"),
        (["corpora", "--all"], "what is '--all'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(trained.rglob("*"))
    (tmp_path.parent / "greek.txt").write_text("αβγ" * 1000)
    replaced = {"RUN": str(trained), "TEXT": str(tmp_path.parent / "greek.txt")}
    for name, value in replaced.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    assert main(arguments) == 2
    assert message in last_line_of_error(capsys)
    assert sorted(trained.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["LOOP", "a\0b", "LOOP/inside", "x" * 300, "~nobody-here/run"])
@pytest.mark.parametrize(
    "flags",
    [
        [SMOKE, "--workdir=NAME"],
        ["--config=NAME"],
        ["sample", "--workdir=NAME"],
        ["sample", "--workdir=RUN", "--prompt_file=NAME"],
        ["score", "--workdir=RUN", "--text_file=NAME"],
        ["evaluate", "--workdir=RUN", "--path=NAME"],
        ["export", "--workdir=RUN", "--output=NAME"],
        ["check", "--workdir=NAME"],
        ["sweep", "--workdir=NAME"],
        ["sweep", "--workdir=NAME", "--register=NAME"],
        ["search", "--workdir=NAME"],
        ["import", "--weights=NAME", "--vocabulary=NAME", "--workdir=NAME"],
        [SMOKE, "--config.data.path=NAME"],
    ],
)
def test_a_path_that_no_file_can_have_is_one_line(
    trained: Path,
    tmp_path: Path,
    name: str,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    name = name.replace("LOOP", str(tmp_path / "loop"))
    arguments = [flag.replace("NAME", name).replace("RUN", str(trained)) for flag in flags]
    assert main(arguments) == 2
    last_line_of_error(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"loop", "pool"}


def test_text_that_was_moved_or_a_file_of_another_shape_strands_no_run(
    trained: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, text = tmp_path / "run", tmp_path / "old.txt"
    own = [SMOKE, f"--workdir={workdir}", "--config.sample.prompt=The"]
    text.write_bytes(text_file.read_bytes())
    assert main([*own, f"--config.data.path={text}", NUM_STEPS + "=1"]) == 0
    text.rename(tmp_path / "new.txt")
    with open(workdir / "metrics.jsonl", "a") as rows:
        rows.write('3\n{"no": "step"}\n')
    (workdir / "evaluation.json").write_text('[{"validation": 3}]')
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*own, f"--config.data.path={tmp_path / 'new.txt'}", NUM_STEPS + "=2"]) == 0
    assert "metrics.jsonl was damaged: 2 of its lines cannot be read" in capsys.readouterr().err
    assert main(["evaluate", f"--workdir={workdir}", f"--path={text_file}"]) == 0
    assert main(["evaluate", f"--workdir={workdir}", f"--path={__file__}"]) == 2


def test_closed_output_ends_no_command() -> None:
    command = f"{sys.executable} -m charrnn_jax.main corpora"
    assert subprocess.run(f"{command} >&-", shell=True).returncode == 0
    closed = subprocess.run(f"{command} x >&- 2>&-", shell=True)
    assert closed.returncode == 2


def test_a_reader_that_has_gone_ends_a_command_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "charrnn_jax.main", "config", "quick"],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_unk_skip_drops_what_the_model_does_not_know(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"--workdir={trained}", "--unk=skip"]
    assert main(["sample", *command, "--prompt=The é", "--num_chars=5"]) == 0
    assert main(["score", *command, "--text=The é fox"]) == 0
    assert "(7 characters after the first" in capsys.readouterr().out


def test_loss_that_is_not_finite_is_one_line_and_exit_code_1(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [f"--config.data.path={text_file}", "--config.sample.prompt=The"]
    diverging = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e38"]
    assert main([SMOKE, f"--workdir={tmp_path}", *own, *diverging]) == 1
    assert "the loss is" in last_line_of_error(capsys)


def test_offline_run_uses_the_built_in_corpus_or_ends_with_nothing_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address is on this machine and refuses connections, as a machine without network does."""
    monkeypatch.setenv("CHARRNN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setitem(
        KNOWN_CORPORA,
        "shakespeare",
        replace(KNOWN_CORPORA["shakespeare"], url="http://127.0.0.1:9/shakespeare.txt"),
    )
    workdir = tmp_path / "run"
    small = ["--config.data.max_chars=20000", NUM_STEPS + "=1", "--config.model.cell=rnn"]
    assert main([SMOKE, f"--workdir={workdir}", *small]) == 2
    assert "cannot be downloaded" in last_line_of_error(capsys)
    assert not list(tmp_path.iterdir())
    offline = [*small, "--config.data.offline_corpus=python-stdlib"]
    assert main([SMOKE, f"--workdir={workdir}", *offline]) == 0
    out = capsys.readouterr().out
    assert "INSTEAD OF 'shakespeare'" in out
    assert "ROMEO:" in out
    assert load_run(workdir).corpus.instead_of == "shakespeare"
    assert main(["evaluate", f"--workdir={workdir}"]) == 0  # reads the built-in corpus again
    assert "INSTEAD OF 'shakespeare'" in capsys.readouterr().err
    # A resumed run is still one on the substitute.
    assert main([SMOKE, f"--workdir={workdir}", *offline, f"{NUM_STEPS}=2"]) == 0
    assert "WARNING: the corpus 'shakespeare'" in capsys.readouterr().out
    assert load_run(workdir).corpus.instead_of == "shakespeare"
    # Also when the corpus that was wanted has come since.
    text = b"ROMEO:\n" * 1000
    known = replace(KNOWN_CORPORA["shakespeare"], size=7000, sha256=sha256(text).hexdigest())
    monkeypatch.setitem(KNOWN_CORPORA, "shakespeare", known)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shakespeare.txt").write_bytes(text)
    assert main(["evaluate", f"--workdir={workdir}"]) == 0


@pytest.mark.parametrize("vocabulary", ["characters", slow("bytes")])
def test_text_in_any_script_is_trained_on_and_generated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vocabulary: str
) -> None:
    text = "Привет, мир! 你好世界。 שלום עולם 🙂🏳️‍🌈 e\u0301\r\n" * 40
    file = tmp_path / "текст.txt"
    file.write_bytes(text.encode())
    workdir = tmp_path / "прогон"
    arguments = [f"--config.data.path={file}", f"--config.data.vocabulary={vocabulary}"]
    small = ["--config.sample.prompt=Привет", NUM_STEPS + "=1", "--config.model.cell=rnn"]
    assert main([SMOKE, f"--workdir={workdir}", *arguments, *small]) == 0
    assert main(["sample", f"--workdir={workdir}", "--prompt=你好", "--num_chars=20"]) == 0
    assert "你好" in capsys.readouterr().out
    assert main(["score", f"--workdir={workdir}", "--text=שלום 🙂"]) == 0


def test_corpora_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpora"]) == 0
    out = capsys.readouterr().out
    for name in ("shakespeare", "text8", "enwik8", "python-stdlib"):
        assert name in out


def test_corpora_says_which_ones_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHARRNN_DATA_DIR", str(tmp_path))
    (tmp_path / "shakespeare.txt").write_text("text")
    assert main(["corpora"]) == 0
    here, absent = re.findall(r"(?:shakespeare|text8) .*", capsys.readouterr().out)
    assert str(tmp_path / "shakespeare.txt") in here
    assert "to be downloaded" in absent


def test_workdir_is_named_after_the_config_and_what_differs() -> None:
    name = _default_workdir(
        "experiments/shakespeare.py", "lstm", ["--config.seed=1", "--config.model.cell=rnn"]
    )
    assert name == Path("runs/shakespeare-lstm-model.cell=rnn-seed=1")
    assert _default_workdir("experiments/quick.py", "", []) == Path("runs/quick")
    name = _default_workdir("quick", "", ["--config.optimizer.learning_rate=1e-3"])
    assert name == Path("runs/quick-optimizer.learning_rate=1e-3")
    args = argparse.Namespace(config=f"{SMOKE.partition('=')[2]}:builtin", workdir=None)
    _, workdir = load_config(args, ["--config.seed=1"])
    assert workdir == Path("runs/smoke-builtin-seed=1")


def test_the_same_overrides_have_one_workdir_and_others_another() -> None:
    """Also if they differ only in their order, past the longest name, or in replaced characters."""
    orders = itertools.permutations(("--config.seed=1", "--config.model.cell=rnn"))
    assert len({_default_workdir("quick", "", list(order)) for order in orders}) == 1
    again = ["--config.seed=2", "--config.seed=1"]
    assert _default_workdir("quick", "", again) == Path("runs/quick-seed=1")
    prompt = "--config.sample.prompt="
    different = [
        [f"{prompt}a b"],
        [f"{prompt}a_b"],
        [f"{prompt}a/b"],
        [f"{prompt}a  b"],
        [f"{prompt}a--b"],
        [f"{prompt}a-b"],
        [f"{prompt}a-seed=1"],
        [f"{prompt}a", "--config.seed=1"],
        *([f"{prompt}{'é' * length}"] for length in (85, 98, 99, 150)),
        *([f"{prompt}{'x' * 300}", f"--config.seed={seed}"] for seed in (1, 2)),
    ]
    workdirs = {_default_workdir("quick", "", overrides) for overrides in different}
    assert len(workdirs) == len(different)
    assert max(len(os.fsencode(workdir.name)) for workdir in workdirs) == 200
    for workdir in workdirs:
        assert re.fullmatch(r"runs/quick-[\w.=-]+", str(workdir))


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "score", "corpora"])
def test_help_lists_the_commands(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "charrnn_jax.main", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "list the known corpora and where each one is" in shown


def test_help_and_errors_of_usage_do_not_wait_for_jax() -> None:
    code = (
        "import sys; from charrnn_jax.main import main\n"
        "try: main(['sample', '--help'])\n"
        "except SystemExit: pass\n"
        "main(['nonsense'])\n"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


@pytest.mark.slow
def test_a_command_finds_the_programs_that_it_compiled_before(
    trained: Path, tmp_path: Path
) -> None:
    """In a folder for this kind of machine; the environment's own setting goes first."""
    command = [sys.executable, "-m", "charrnn_jax.main", "sample", f"--workdir={trained}"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # of all other tests
    del environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]

    def compiled() -> set[str]:
        # Smaller programs are kept or not by how long they took to compile.
        there = (tmp_path / "cache").rglob("jit_sample_chunk-*-cache")
        return {path.name for path in there}

    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    first = compiled()
    assert len(first) == 1
    again = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert compiled() == first
    assert again.stderr.count(b"\n") <= 4  # nothing but our own lines
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "own")
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert compiled() == first
