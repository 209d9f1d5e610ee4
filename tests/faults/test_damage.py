"""Every damage on every file of a run is named, or changes nothing that anyone is shown."""

import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import SMOKE, rows_without_time, some_judgement
from ml_collections import ConfigDict

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.dynamic import Dynamic
from charrnn_jax.main import main
from charrnn_jax.training.loop import train
from charrnn_jax.workdir.check import check_run
from charrnn_jax.workdir.json_lines import read_json_lines
from charrnn_jax.workdir.judgement import read_judgement, save_judgement
from charrnn_jax.workdir.run import load_run
from charrnn_jax.workdir.tuned import save_tuned, tuned_dynamic


def flip_a_bit(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "empty": lambda content, rng: b"",
    "zeros": lambda content, rng: bytes(len(content)),
    "noise": lambda content, rng: rng.randbytes(len(content)),
    "longer": lambda content, rng: content + rng.randbytes(20),
    "missing": None,
}


FOUND = ("evaluation.json", "dynamic.json", "judgement.json")  # by commands after training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    return tmp_path_factory.mktemp("damage") / "run"


def shown(workdir: Path) -> list[object]:
    """What people are shown of a run: parameters, losses and rows."""
    values: list[object] = []
    for which in ("latest", "best"):
        run = load_run(workdir, checkpoint=which)
        values += [run.step, run.loss, run.vocabulary, run.config.to_dict(), run.corpus]
        values += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.params)]
    rows = [read_json_lines(workdir / name) for name in ("metrics.jsonl", "samples.jsonl")]
    latest = load_run(workdir, checkpoint="latest")
    return [*values, run.losses(), tuned_dynamic(latest), read_judgement(latest), *rows]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_of_any_file_is_silently_wrong(
    tiny_config: ConfigDict, trained: Path, tmp_path: Path, damage: str
) -> None:
    """`check` names it or nothing that is shown has changed; the same for a run that is resumed."""
    if not trained.exists():
        tiny_config.train.num_steps = 30
        tiny_config.train.checkpoint_every_steps = 10
        train(tiny_config, trained)
        assert main(["evaluate", f"--workdir={trained}"]) == 0
        run = load_run(trained, checkpoint="latest")
        save_tuned(run, Dynamic(rate=0.125))
        save_judgement(run, some_judgement(), prompt="The ")
    before, rng = shown(trained), random.Random(damage)
    files = [file for file in sorted(trained.rglob("*")) if file.is_file()]
    assert len(files) > 30
    text = [file for file in files if file.suffix in (".json", ".jsonl")]
    for file in [*files, *text * 3]:  # a bit of a text may be a space, or one of many digits
        workdir = tmp_path / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(trained, workdir)
        damaged = workdir / file.relative_to(trained)
        content = damaged.read_bytes()
        if (change := DAMAGES[damage]) is None:
            damaged.unlink()
        elif not content and damage != "longer":
            continue
        else:
            damaged.write_bytes(change(content, rng))
        if damage == "missing" and file.name in FOUND:
            continue  # the run was not evaluated, tuned or judged
        named = [finding for finding in check_run(workdir) if finding.problem]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                same = shown(workdir) == before
        except UserError:
            same = False
            assert named, f"{damage} in {file} is an error, but `check` does not find it"
        assert named or same, f"{damage} in {file} is not noticed"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a flipped bit", "cut"])
def test_damaged_programs_in_the_cache_are_compiled_again(tmp_path: Path, damage: str) -> None:
    """By JAX, whose warning says so: its compressed entries have checksums."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    rng = random.Random(damage)

    def rows(workdir: Path) -> list[dict[str, object]]:
        command = [sys.executable, "-m", "charrnn_jax.main", SMOKE, f"--workdir={workdir}"]
        own = ["--config.data.corpus=python-stdlib", "--config.train.num_steps=20"]
        done = subprocess.run([*command, *own], env=environment, cwd=ROOT, capture_output=True)
        assert done.returncode == 0
        return rows_without_time(workdir)

    expected = rows(tmp_path / "first")
    programs = [file for file in (tmp_path / "programs").rglob("*-cache") if file.is_file()]
    assert programs
    for file in programs:
        file.write_bytes(DAMAGES[damage](file.read_bytes(), rng))
    assert rows(tmp_path / "second") == expected
