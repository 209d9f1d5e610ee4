"""Runs that are killed end as undisturbed ones; longer campaigns: python -m tests.faults"""

import random
import signal
from pathlib import Path

import kills
import pytest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """Fingerprint and seconds of each scenario, measured when it is first needed."""
    folder = tmp_path_factory.mktemp("undisturbed")

    class Measured(dict[str, tuple[str, float]]):
        def __missing__(self, name: str) -> tuple[str, float]:
            place = folder / name.replace(" ", "_")
            self[name] = kills.run_undisturbed(kills.SCENARIOS[name], place)
            return self[name]

    return Measured()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("train", ""),
        ("train", "inside a save"),
        ("train", "at the last step"),
        ("sweep", ""),
        ("search", ""),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    undisturbed: dict[str, tuple[str, float]], tmp_path: Path, name: str, moment: str
) -> None:
    expected, seconds = undisturbed[name]
    result = kills.run_killed(
        kills.SCENARIOS[name],
        tmp_path / "killed",
        expected=expected,
        seconds=seconds,
        rng=random.Random(0),
        moment=moment,
        most_kills=2,
    )
    assert result.kills
    assert result.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_has_saved_and_prints_no_traceback(
    undisturbed: dict[str, tuple[str, float]],
    tmp_path: Path,
    heeded_signals: None,
    number: int,
) -> None:
    """At random moments from the first millisecond; the exit code is that of the signal."""
    expected, seconds = undisturbed["train"]
    result = kills.run_killed(
        kills.SCENARIOS["train"],
        tmp_path / "stopped",
        expected=expected,
        seconds=seconds,
        rng=random.Random(int(number)),
        number=number,
        most_kills=4,
    )
    assert result.kills
    assert result.problems == []
