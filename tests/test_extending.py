"""docs/extending.md, tried literally: its files in an empty folder, its commands in their order."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from charrnn_jax.main import main

DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)```", DOCUMENT, re.S | re.M))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)```", DOCUMENT, re.S | re.M)
    for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files of the page, which is where we are."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what a command prints. In this process: starting one for each takes minutes."""
    program, *arguments = shlex.split(command)
    if program == "charrnn":
        assert main(arguments) == 0, command
    else:
        runpy.run_path(arguments[0])
    return "".join(capsys.readouterr())


@pytest.mark.slow
def test_every_example_of_the_page_runs_as_it_is_written(
    own_registries: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {command: run(command, capsys) for command in COMMANDS}
    resumed = outputs["charrnn --config=peephole.py --workdir=runs/peephole"]
    assert "Resuming from step 20 of 40" in resumed
    assert (folder / "exported" / "generate.py").is_file()
    sweep = (folder / "runs" / "peephole-sweep" / "sweep.csv").read_text()
    assert sweep.count(",done,") == 4
    assert len((folder / "norms.csv").read_text().splitlines()) == 4
    evaluated = outputs["charrnn evaluate --config=warm.py --protocol=warm"]
    assert "warm-64" in evaluated
    assert "unit " in outputs["python units.py"]
    measured = (folder / "runs" / "methods-train.step=measured" / "metrics.jsonl").read_text()
    assert "train/carry_norm" in measured
    sampled = outputs["charrnn sample --config=letters.py --rule=fewer_letters --num_chars=100"]
    assert "characters/s" in sampled
