import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SMOKE, last_line_of_error, some_judgement
from test_sweep_report import parse_tables

from charrnn_jax.evaluation.samples import FIGURES
from charrnn_jax.main import main
from charrnn_jax.workdir.judgement import read_judgement, save_judgement
from charrnn_jax.workdir.run import load_run

WORDS = ["the", "a", "of", "king", "lord", "night", "shall", "come", "to", "my", "thou", "and"]
WORDS += ["good", "sir", "is", "not", "what", "in", "day", "heart"]


def plain(num_words: int, seed: int) -> str:
    """Lines of a few known words, some of which are new."""
    rng = np.random.default_rng(seed)
    drawn, is_new = rng.choice(WORDS, num_words), rng.random(num_words) < 0.1
    new = [f"{word}{seed}x{i}" if is_new[i] else word for i, word in enumerate(drawn)]
    return re.sub(r"((\S+ ){9})", "\\1\n", " ".join(new))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    text = plain(5000, 1)
    # The test split stands in train.
    (folder / "text.txt").write_text(text + text[: len(text) // 10], encoding="utf-8")
    own = [f"--config.data.path={folder / 'text.txt'}", "--config.data.max_chars=0"]
    own += ["--config.data.validation_fraction=0.2", "--config.data.test_fraction=0.09"]
    own += ["--config.train.num_steps=30", "--config.sample.prompt=the"]
    assert main([SMOKE, f"--workdir={folder / 'run'}", *own]) == 0
    return folder / "run"


def judge(trained: Path, *flags: str) -> list[str]:
    return ["judge", f"--workdir={trained}", "--num_chars=300", "--num_samples=4", *flags]


def test_a_table_has_every_group_and_its_verdict(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(trained.iterdir())
    settings = ["--prompt=the ", "--setting=top_p=0.001", "--setting=temperature=1,top_p=0.9"]
    capsys.readouterr()
    assert main(judge(trained, *settings)) == 0
    out = capsys.readouterr().out
    (known,) = re.findall(r"^known words, % (.*)$", out, flags=re.MULTILINE)
    shown = re.findall(r"(\S+) \+- *(\S+)", known)
    assert re.search(r"^top_p 0\.001: repeats itself", out, flags=re.MULTILINE)
    assert out.count("longest copy: ") == 3
    assert max(map(len, out.splitlines()[:17])) <= 100
    assert main(judge(trained, *settings, "--json")) == 0
    judged = json.loads(capsys.readouterr().out)
    assert list(judged["groups"]) == ["top_p 0.001", "temperature 1, top_p 0.9"]
    for group, (mean, half) in zip(
        [judged["real"], *judged["groups"].values()], shown, strict=True
    ):
        figure = group["figures"]["known_words"]
        assert mean == f"{100 * figure['mean']:.1f}"
        assert half == f"{100 * (figure['high'] - figure['low']) / 2:.1f}"
    assert sorted(trained.iterdir()) == sorted([*files, trained / "judgement.json"])
    saved = read_judgement(load_run(trained))
    assert saved is not None
    assert json.loads(json.dumps(asdict(saved[0]))) == judged
    assert saved[1] == "the "


def test_the_report_shows_what_was_found_of_the_same_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    run = load_run(tmp_path / "run")
    judgement = some_judgement()
    save_judgement(run, judgement, prompt="")
    report = ["report", f"--workdir={run.workdir}"]
    assert main(report) == 0
    page = (run.workdir / "report.html").read_text(encoding="utf-8")
    table = next(table for table in parse_tables(page) if table[0][0] == "Figure")
    assert table[0][1:] == ["real text", "temperature 1"]
    assert [row[0] for row in table[1:]] == [display.label for display in FIGURES.values()]
    assert table[1][1:] == ["50.0 +-25.0"] * 2
    assert "temperature 1: gibberish." in page
    save_judgement(replace(run, step=run.step + 1), judgement, prompt="")
    assert main(report) == 0
    assert "Not judged at this step" in (run.workdir / "report.html").read_text(encoding="utf-8")
    (run.workdir / "judgement.json").write_text("{}")
    capsys.readouterr()
    assert main(report) == 2
    assert "delete it, and judge again" in last_line_of_error(capsys)


def test_a_given_text_is_judged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained.parent / "text.txt").read_text(encoding="utf-8")
    noise = "".join(np.random.default_rng(0).permutation(list(text[:1500])))
    file, verdicts = tmp_path / "given.txt", []
    for given in (text[1000:2000], plain(400, 2), noise):
        file.write_text(given, encoding="utf-8")
        capsys.readouterr()
        assert main(judge(trained, f"--text_file={file}", "--json")) == 0
        verdicts.append(json.loads(capsys.readouterr().out)["groups"][str(file)]["verdict"])
    assert verdicts == ["memorised", "like real text", "gibberish"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_chars=199"], "--num_chars=199 is too short to judge"),
        (["--num_samples=40"], "characters, but 40 times 300 are needed"),
        (["--setting=speed=1"], "'speed' is not a setting"),
        (["--setting=temperature=hot"], "'hot' is not a number"),
        (["--setting=top_p=2"], "top_p is 2.0"),
        (["--prompt=%"], "not in the vocabulary: '%'"),
        (["--text_file=/absent"], "no file found at '/absent'"),
        (["--text_file=a", "--prompt=a"], "leave --setting and --prompt out"),
    ],
)
def test_wrong_flags_of_judge_are_refused_in_one_line(
    trained: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(judge(trained, *flags)) == 2
    assert message in last_line_of_error(capsys)


def test_novel_texts_copy_no_more_than_allowed_and_list_their_copies(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def samples(*flags: str) -> list[dict]:
        capsys.readouterr()
        command = ["sample", f"--workdir={trained}", "--num_chars=150", "--num_samples=4", "--json"]
        assert main([*command, "--prompt=the ", "--top_p=0.9", *flags]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    run = load_run(trained)
    train = run.vocabulary.decode(run.load_dataset().splits["train"])

    def longest(text: str) -> int:
        """Length of the longest copy."""
        return next(
            n for n in range(150, -1, -1) if any(text[i : i + n] in train for i in range(151 - n))
        )

    as_drawn = samples()
    most = max(longest(sample["text"]) for sample in as_drawn) - 1
    novel = samples(f"--novel={most}")
    is_same = [a["text"] == b["text"] for a, b in zip(as_drawn, novel, strict=True)]
    assert is_same == [longest(sample["text"]) <= most for sample in as_drawn]
    assert 0 < sum(is_same) < 4
    for sample in novel:
        copied, text = sample["copied"], sample["text"]
        assert all(span["length"] == most for span in copied)
        assert bool(copied) == (longest(text) == most)
        for span in copied:
            start, length, place = span["start"], span["length"], span["place"]
            assert text[start : start + length] == train[place : place + length]
    assert samples("--novel=150")[0].keys() == {*as_drawn[0], "copied"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--novel=1", "--num_samples=4", "--top_p=0.9"],
            "4 of 4 texts copied more than 1 characters in each of 20 tries",
        ),
        (["--novel=9", "--stream"], "leave --stream out"),
        (["--novel=9", "--baseline"], "--novel is not for --baseline"),
    ],
)
def test_wrong_uses_of_novel_are_refused_in_one_line(
    trained: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["sample", f"--workdir={trained}", "--prompt=the ", "--num_chars=50"]
    assert main([*command, *flags]) == 2
    assert message in last_line_of_error(capsys)


def test_long_texts_are_followed_from_start_to_end(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    flags = ["--num_chars=520", "--setting=temperature=1", "--prompt=the "]
    assert main(judge(trained, *flags)) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  ([\d,]+ to [\d,]+) ", out, flags=re.MULTILINE) == [
        "0 to 250",
        "250 to 500",
    ]
    assert main(judge(trained, *flags, "--json")) == 0
    judged = json.loads(capsys.readouterr().out)
    for group in (judged["real"], *judged["groups"].values()):
        assert len(group["loss_by_distance"]) == 2
