"""`charrnn compare`: the same characters for every run, and what cannot be compared is refused."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import SENTENCE
from helpers import last_line_of_error, slow
from test_sweep_report import parse_tables

import charrnn_jax
from charrnn_jax.config import default_config
from charrnn_jax.data.dataset import CorpusIdentity, load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.comparison import holm
from charrnn_jax.evaluation.protocols import Carried, Cold
from charrnn_jax.main import main
from charrnn_jax.reports.sweep.statistics import Result
from charrnn_jax.sweeps.best_two import describe_best_two
from charrnn_jax.workdir.checkpoints import Checkpoints
from charrnn_jax.workdir.compare import compare
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.run import Run

TEXTS = {
    "english": SENTENCE * 30,
    "several": "Привет, мир! 你好世界。 שלום עולם 🙂 e\u0301\n" * 60,
}
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run with random weights, as `load_run` would return it."""

    def make(
        name: str = "a", *, seed: int = 0, text: str = "english", more: str = "", **data: Any
    ) -> Run:
        file = tmp_path / f"{text}.txt"
        file.write_text(TEXTS[text], encoding="utf-8")
        config = default_config()
        config.data.update({"path": str(file), **data})
        config.model.embedding_size = config.model.hidden_size = 4
        dataset = load_dataset(config.data)
        vocabulary = dataset.vocabulary
        if more:  # characters that the text does not have, as after fine-tuning
            vocabulary = Vocabulary.build([vocabulary.characters, more])
        model = charrnn_jax.make_model(config.model, vocabulary_size=vocabulary.size)
        params = charrnn_jax.initialize_params(model, jax.random.key(seed))
        identity = dataset.identity()
        return Run(Path(name), 7, config, vocabulary, identity, model, params, loss=None)

    return make


@pytest.mark.parametrize(
    ("text", "kind", "protocol"),
    [
        ("english", "characters", Carried()),
        ("several", "bytes", Cold(window=32)),
        slow("english", "bytes", Carried()),
        slow("several", "characters", Cold(window=32)),
    ],
)
def test_comparison_is_of_the_losses_of_single_characters(
    make_run: MakeRun, text: str, kind: str, protocol: charrnn_jax.Protocol
) -> None:
    a, b = (make_run(str(seed), seed=seed, text=text, vocabulary=kind) for seed in range(2))
    found = compare(a, b, protocol=protocol)
    losses = []
    for run, scored in zip((a, b), found.runs, strict=True):
        tokens = run.load_dataset().splits.with_context("validation")
        expected = charrnn_jax.evaluate(run.params, tokens, model=run.model, protocol=protocol)
        assert scored.loss == pytest.approx(expected.nats_per_char, rel=1e-6)
        assert found.num_chars == expected.count
        each = charrnn_jax.char_losses(run.params, tokens, model=run.model, protocol=protocol)
        assert scored.standard_error == charrnn_jax.standard_error(each)
        losses.append(each)
    (pair,) = found.pairs
    assert pair.difference == charrnn_jax.paired_difference(*losses)
    counts = {group.name: group.num_chars for group in pair.groups}
    if text == "several":
        # A byte belongs to the kind of its character: 3 bytes each.
        part = TEXTS[text].encode() if kind == "bytes" else TEXTS[text]
        start = len(part) - found.num_chars
        rest = part[start:] if isinstance(part, str) else part[start:].decode("utf-8", "ignore")
        num_han = sum("\u4e00" <= character <= "\u9fff" for character in rest)
        num_hebrew = sum("\u05d0" <= character <= "\u05ea" for character in rest)
        sizes = (3, 2) if kind == "bytes" else (1, 1)
        expected_count = num_han * sizes[0] + num_hebrew * sizes[1]
        assert counts["other letter"] == pytest.approx(expected_count, abs=2)
    first = pair.excerpts[0]
    shown = first.before + first.passage + first.after
    assert shown in TEXTS[text]
    assert ("position in the window" in {g.kind for g in pair.groups}) == isinstance(protocol, Cold)


def test_order_of_runs_flips_signs_and_a_run_equals_itself(make_run: MakeRun) -> None:
    a, b = (make_run(str(seed), seed=seed) for seed in range(2))
    (pair,), (flipped,) = compare(a, b).pairs, compare(b, a).pairs
    assert pair.difference.mean == -flipped.difference.mean
    assert pair.difference.low == pytest.approx(-flipped.difference.high)
    for one, other in zip(pair.groups, flipped.groups, strict=True):
        assert one.contribution == pytest.approx(-other.contribution)
        assert one.share == pytest.approx(other.share)
    assert [e.start for e in pair.excerpts] == [e.start for e in flipped.excerpts]
    (equal,) = compare(a, a).pairs
    assert (equal.difference.mean, equal.difference.low, equal.difference.high) == (0, 0, 0)
    assert not equal.is_real
    assert not equal.excerpts
    assert equal.describe("AB", unit="char") == "A and B have the same losses on this text."


def test_several_runs_are_compared_in_pairs_with_a_correction(make_run: MakeRun) -> None:
    runs = [make_run(str(seed), seed=seed) for seed in range(4)]
    found = compare(*runs)
    assert [(p.first, p.second) for p in found.pairs] == [
        *((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    ]
    two = compare(runs[1], runs[3])
    assert two.pairs[0].difference == found.pairs[4].difference
    assert two.pairs[0].corrected_p == two.pairs[0].difference.p
    corrected = [pair.corrected_p for pair in found.pairs]
    assert corrected == holm([pair.difference.p for pair in found.pairs])
    assert min(corrected) > min(pair.difference.p for pair in found.pairs)


def test_a_vocabulary_with_more_characters_scores_the_same_text(make_run: MakeRun) -> None:
    found = compare(make_run("a"), make_run("b", more="0123456789é"))
    assert found.num_chars == len(TEXTS["english"]) - int(0.9 * len(TEXTS["english"]))


def test_imported_runs_are_compared_on_a_given_text(make_run: MakeRun, tmp_path: Path) -> None:
    a, b = make_run("a"), make_run("b", seed=1)
    unknown = CorpusIdentity("an unknown text", "0" * 64, 0)
    imported = dataclasses.replace(b, imported=True, corpus=unknown)
    given = str(tmp_path / "english.txt")
    assert compare(a, imported, path=given).pairs == compare(a, b).pairs
    with pytest.raises(UserError, match="imported model, whose text is not known"):
        compare(a, imported)
    other = tmp_path / "other.txt"
    other.write_text("Über " + TEXTS["english"], encoding="utf-8")
    with pytest.raises(UserError, match=r"^b cannot score the text: not in the vocabulary: 'Ü'"):
        compare(imported, imported, path=str(other))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"vocabulary": "bytes"}, "a predicts characters and b bytes"),
        ({}, {"text": "several"}, "a and b have different texts: "),
        ({}, {"max_chars": 2000}, "a and b have different texts: "),
        ({}, {"validation_fraction": 0.2}, "a and b split the text at different places"),
        ({"max_chars": 300}, {"max_chars": 300}, "has 30 characters to score: .* needs 32"),
    ],
)
def test_runs_that_do_not_score_the_same_characters_are_refused(
    make_run: MakeRun, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compare(make_run("a", **first), make_run("b", **second))


def test_other_things_that_cannot_be_compared_are_refused(make_run: MakeRun) -> None:
    a, b = make_run("a"), make_run("b")
    with pytest.raises(UserError, match="needs 2 to 20 runs, not 1"):
        compare(a)
    b.config.evaluation.window = 64
    with pytest.raises(UserError, match="a is evaluated by cold-256 and b by cold-64"):
        compare(a, b, protocol="cold")
    assert compare(a, b, protocol=Cold(window=64)).protocol == "cold-64"
    broken = dataclasses.replace(b, params=jax.tree.map(lambda x: x * math.nan, b.params))
    with pytest.raises(UserError, match="b, step 7, has losses that are not finite"):
        compare(a, broken)


# --- commands -----------------------------------------------------------------------------------


@pytest.fixture
def workdirs(make_run: MakeRun, tmp_path: Path) -> list[Path]:
    """Two runs on disk, the second of which predicts less badly."""
    folders = [tmp_path / "worse", tmp_path / "better"]
    for folder, scale in zip(folders, (4.0, 1.0), strict=True):
        run = make_run()
        run.config.evaluation.window = 32
        metadata = CheckpointMetadata(
            step=run.step,
            config=run.config.to_dict(),
            vocabulary=run.vocabulary.to_dict(),
            corpus=run.corpus,
        )
        with Checkpoints(folder) as checkpoints:
            params = jax.tree.map(lambda x, scale=scale: x * scale, run.params)
            checkpoints.save(params, None, metadata=metadata)
    return folders


def test_compare_prints_what_it_found(
    workdirs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*map(str, workdirs)]
    assert main(["compare", *names, "--protocol=cold"]) == 0
    out, err = capsys.readouterr()
    (pair,) = compare(*map(charrnn_jax.load_run, names), protocol="cold").pairs
    plain = " ".join(out.split())
    assert f"B is better than A by {pair.difference.mean:.4f} nats/char: the 95% interval" in plain
    assert "does not contain 0" in plain
    assert "This compares runs, not configurations" in plain
    assert "position in the window" in out
    assert "Text: " in err
    # A workdir may be long.
    lines = [line for line in out.splitlines() if not any(name in line for name in names)]
    assert max(map(len, lines)) <= 100
    assert len(out.splitlines()) < 50
    assert main(["compare", *names, "--verbose"]) == 0
    longer = capsys.readouterr().out
    assert "position in the line" in longer
    assert longer.count("[[") > out.count("[[")
    assert main(["compare", *names, "--json", "--protocol=cold"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["pairs"][0]["difference"]["low"] == pair.difference.low
    assert data["pairs"][0]["is_real"]
    assert data["pairs"][0]["difference"]["detectable"] == pair.difference.detectable
    assert [run["name"] for run in data["runs"]] == names


def test_compare_writes_a_page_of_what_it_found(
    workdirs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, losses in zip(workdirs, ([3.0, 2.5], [2.75, 2.25]), strict=True):
        rows = [{"step": 7 * n, "train/loss": loss} for n, loss in enumerate(losses, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names, page = [*map(str, workdirs)], tmp_path / "page.html"
    assert main(["compare", *names, f"--html={page}"]) == 0
    found = compare(*map(charrnn_jax.load_run, names))
    (pair,) = found.pairs
    text = page.read_text(encoding="utf-8")
    losses, pairs, *groups = parse_tables(text)
    assert [row[:2] for row in losses[1:]] == [["A", "worse"], ["B", "better"]]
    assert [row[4] for row in losses[1:]] == [f"{run.loss:.4f}" for run in found.runs]
    assert pairs[1][:3] == [
        "A - B",
        f"{pair.difference.mean:+.4f}",
        f"{pair.difference.low:+.4f}, {pair.difference.high:+.4f}",
    ]
    names_of_groups = [row[0] for table in groups for row in table[1:]]
    assert names_of_groups == [group.name for group in pair.groups]
    assert "All fields of the configs are equal" in text
    assert "Training loss" in text
    assert "Validation loss" not in text  # no row has one
    assert str(tmp_path) not in text


def test_evaluate_says_how_certain_a_loss_is(
    workdirs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = charrnn_jax.load_run(workdirs[1])
    assert main(["evaluate", f"--workdir={workdirs[1]}"]) == 0
    out = capsys.readouterr().out
    saved = json.loads((workdirs[1] / "evaluation.json").read_text())["validation"]["losses"]
    tokens = run.load_dataset().splits.with_context("validation")
    for protocol in (Cold(window=32), Carried()):
        losses = charrnn_jax.char_losses(run.params, tokens, model=run.model, protocol=protocol)
        error = charrnn_jax.standard_error(losses)
        assert saved[protocol.label]["standard_error"] == error
        assert f"standard error {error:.4f} nats/char)" in out
        known = charrnn_jax.load_run(workdirs[1]).losses()["validation"]
        assert known[protocol.label] == pytest.approx(float(np.mean(losses, dtype=float)))
    capsys.readouterr()
    main(["check", f"--workdir={workdirs[1]}"])
    assert "known for validation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: RUN"),
        (["nowhere"], "needs two runs: charrnn compare RUN RUN"),
        (["nowhere", "neither"], "there is no checkpoint in nowhere"),
        (["nowhere", "neither", "--window=3"], "what is '--window=3'"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    assert message in last_line_of_error(capsys)


def test_a_report_compares_its_two_best_or_says_why_not(workdirs: list[Path]) -> None:
    def result(name: str, loss: float, **settings: Any) -> Result:
        return Result(name, settings, "done", loss, loss, (), 1, 1.0)

    results = [
        result("worst", 9.0, x=0, seed=0),
        result("a", 2.0, x=1, seed=1),
        result("other seed", 1.0, x=2, seed=0),
        result("b", 1.0, x=2, seed=1),
    ]
    folders = dict(zip("ab", workdirs, strict=True))
    (text,) = describe_best_two(results, folders, protocol=Cold(window=32))
    assert "in one run of each (b; a), cold-32, on 246 characters" in text
    assert ": the first is better than the second by " in text
    assert describe_best_two(results[2:], folders, protocol=Carried()) == []
    gone = {name: folder / "gone" for name, folder in folders.items()}
    (text,) = describe_best_two(results, gone, protocol=Carried())
    assert "not compared (there is no checkpoint in " in text
