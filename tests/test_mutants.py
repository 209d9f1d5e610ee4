"""The list of mutants fits the code, and the tool that tries them tells what is noticed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from mutants import Copy, Mutant, check, measure, read_mutants

MUTANT = Mutant(
    claim="the exit code of bad usage is 1",
    file="charrnn_jax/errors.py",
    old="    exit_code = 2",
    new="    exit_code = 1",
    tests=("tests/test_layout.py", "-k", "no_file_imports"),
)


def test_every_mutant_changes_one_place_and_names_tests_that_are_there() -> None:
    mutants = read_mutants()
    assert len(mutants) >= 110
    assert check(mutants) == []


def test_a_list_that_no_longer_fits_is_found() -> None:
    for changes, message in (
        ({"old": "exit_code"}, "is 3 times"),
        ({"old": "exit_kode"}, "is 0 times"),
        ({"file": "charrnn_jax/no.py"}, "is 0 times"),
        ({"new": MUTANT.old}, "nothing changes"),
        ({"tests": ("tests/test_no.py",)}, "there is no tests/test_no.py"),
        ({"tests": ("tests/test_layout.py", "-k", "no_such or not imports")}, "called no_such"),
    ):
        assert message in "\n".join(check([replace(MUTANT, **changes)]))
    assert check([MUTANT]) == []
    assert "listed twice" in "\n".join(check([MUTANT, MUTANT]))


def test_what_is_noticed_counts_and_a_copy_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"fails": 1, "passes": 0, "hangs": None, "crashes": -11, "none": 5}
    seen, failing = [], []

    def run(copy: Copy, arguments: Sequence[str], *, timeout: float | None = None) -> int | None:
        if "-x" not in arguments:
            return 0
        seen.append((copy.root / MUTANT.file).read_text())
        return codes[arguments[1]]

    monkeypatch.setattr(Copy, "run", run)
    monkeypatch.setattr(Copy, "failed", lambda copy: failing)
    mutants = [replace(MUTANT, claim=name, tests=(name,)) for name in codes]
    assert measure(mutants, jobs=1) == 1
    assert "3 of 5 noticed (60.0%)" in capsys.readouterr().out
    assert all(MUTANT.new in text for text in seen)
    all_noticed = [mutants[0], replace(mutants[1], explained="it says nothing")]
    assert measure(all_noticed, jobs=2) == 0
    assert "it says nothing" in capsys.readouterr().out
    copy = Copy(tmp_path)
    copy.try_mutant(mutants[0])
    assert (copy.root / MUTANT.file).read_text() == (ROOT / MUTANT.file).read_text()


def test_no_mutant_is_tried_by_tests_that_fail_anyhow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def run(copy: Copy, arguments: Sequence[str], *, timeout: float | None = None) -> int | None:
        tried.append(arguments)
        (copy.root.parent / "output.txt").write_text(
            "FAILED tests/test_layout.py::test_x[a b] - assert 1 == 2\n1 failed\n"
        )
        return 1

    monkeypatch.setattr(Copy, "run", run)
    assert measure([MUTANT], jobs=1) == 1
    assert "mend them first" in capsys.readouterr().out
    assert len(tried) == 1
    assert measure([MUTANT], jobs=1, despite_failures=True) == 0
    assert tried[-1] == ["-x", *MUTANT.tests, "--deselect=tests/test_layout.py::test_x[a b]"]
