"""The list of mutants fits the code, and the tool that tries them tells what is noticed."""

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
    seen = []

    def run(copy: Copy, arguments: tuple[str, ...], *, timeout: float | None) -> int | None:
        seen.append((copy.root / MUTANT.file).read_text())
        return {"fails": 1, "passes": 0, "hangs": None, "crashes": -11, "none": 5}[arguments[0]]

    monkeypatch.setattr(Copy, "run", run)
    mutants = [
        replace(MUTANT, claim=name, tests=(name,))
        for name in ("fails", "hangs", "crashes", "passes", "none")
    ]
    monkeypatch.setattr(Copy, "output", lambda copy: "FAILED tests/test_x.py::test_y - assert\n")
    assert measure(mutants, jobs=1, verify=False) == 1
    assert "3 of 5 noticed (60.0%)" in capsys.readouterr().out
    assert all(MUTANT.new in text for text in seen)
    explained = replace(mutants[3], explained="it says nothing")
    assert measure([*mutants[:3], explained], jobs=2, verify=False) == 0
    assert "explained" in capsys.readouterr().out
    copy = Copy(tmp_path)
    copy.try_mutant(mutants[0])
    assert (copy.root / MUTANT.file).read_text() == (ROOT / MUTANT.file).read_text()
