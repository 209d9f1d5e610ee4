"""docs/extending.md, tried literally: its files in an empty folder, its commands in their order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)```", DOCUMENT, re.S | re.M))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)```", DOCUMENT, re.S | re.M)
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extending")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def run(command: str, folder: Path) -> str:
    name, *arguments = shlex.split(command)
    program = {
        "charrnn": [sys.executable, "-m", "charrnn_jax.main"],
        "python": [sys.executable],
    }[name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    done = subprocess.run(
        [*program, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_example_of_the_page_runs_as_it_is_written(folder: Path) -> None:
    outputs = {command: run(command, folder) for command in COMMANDS}
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
    assert "train/update_ratio" in measured
    letters = outputs["charrnn sample --config=letters.py --rule=fewer_letters --num_chars=100"]
    assert "characters/s" in letters
