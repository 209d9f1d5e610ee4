"""`charrnn check`: what it finds, what it says, and that it changes nothing."""

import shutil
from pathlib import Path

import pytest
from helpers import last_line_of_error
from ml_collections import ConfigDict

from charrnn_jax.main import main
from charrnn_jax.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("check")


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("none", "training resumes from step 42"),
        ("bit", "checkpoint 42   PROBLEM: its files do not match their checksums"),
        ("renamed", "checkpoint 43   PROBLEM: it was written after step 42, and renamed since"),
        ("unsigned", "checkpoint 42   PROBLEM: sha256.json is missing"),
        ("rows", "metrics.jsonl   PROBLEM: 1 of its lines cannot be read and 3 rows up to step 42"),
        ("losses", "losses          PROBLEM: "),
        ("text", "text            PROBLEM: the run was trained on"),
        ("all", "resuming        PROBLEM: no checkpoint is intact"),
    ],
)
def test_check_finds_damage_names_it_and_changes_nothing(
    tiny_config: ConfigDict,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    says: str,
) -> None:
    if not (trained / "run").exists():
        shutil.copy(tiny_config.data.path, trained / "text.txt")
        tiny_config.data.path = str(trained / "text.txt")
        train(tiny_config, trained / "run")
    workdir = tmp_path / "run"
    shutil.copytree(trained / "run", workdir)
    last = workdir / "checkpoints" / "42"
    arguments = ["check", f"--workdir={workdir}"]
    if damage in ("bit", "all"):
        for folder in workdir.glob("checkpoints/*") if damage == "all" else [last]:
            file = max(
                folder.rglob("params/**/*"), key=lambda path: path.is_file() and len(str(path))
            )
            file.write_bytes(file.read_bytes() + b"\1")
    elif damage == "renamed":
        last.rename(last.with_name("43"))
    elif damage == "unsigned":
        (last / "sha256.json").unlink()
    elif damage == "rows":
        lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (workdir / "metrics.jsonl").write_bytes(b"".join([*lines[:-3], b"\xff\n"]))
    elif damage == "losses":
        (workdir / "evaluation.json").write_text('{"validation": 3}')
    elif damage == "text":
        (tmp_path / "other.txt").write_text("another text")
        arguments.append(f"--path={tmp_path / 'other.txt'}")
    before = content(workdir)
    assert main(arguments) == (0 if damage == "none" else 2)
    assert content(workdir) == before
    captured = capsys.readouterr()
    assert says in captured.out
    assert captured.out.count("PROBLEM") == {"none": 0, "all": 3}.get(damage, 1)
    if damage in ("bit", "renamed", "unsigned"):
        assert "training resumes from step 21" in captured.out
    if damage != "none":
        assert "problem(s), shown above" in captured.err


def test_check_of_a_sweep_checks_every_run(
    tiny_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        train(tiny_config, tmp_path / "units" / name)
    assert main(["check", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("resumes from step 42") == 2
    (tmp_path / "units" / "b" / "checkpoints" / "42" / "sha256.json").write_text("[]")
    assert main(["check", f"--workdir={tmp_path}"]) == 2
    assert "1 problem(s)" in last_line_of_error(capsys)


def test_check_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"--workdir={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert "there is no checkpoint in" in captured.out
    assert "1 problem(s)" in captured.err
