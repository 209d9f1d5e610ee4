"""Signals that end a command; those that end training are in test_training.py."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from charrnn_jax.files import creating, replacing
from charrnn_jax.main import main
from charrnn_jax.training import interrupt
from charrnn_jax.training.interrupt import StopsCommand


def stop(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)  # ended by the exception of the handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_of_what_a_command_was_writing(
    tmp_path: Path, heeded_signals: None, number: int
) -> None:
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit),
        StopsCommand(),
        creating(tmp_path / "folder") as folder,
        replacing(tmp_path / "file") as file,
    ):
        (folder / "a").write_text("a")
        file.write_text("a")
        stop(number)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_that_a_callback_swallows_is_raised_again(heeded_signals: None) -> None:
    """As in JAX's callback after a garbage collection."""

    class Callback:
        def __del__(self) -> None:
            stop(signal.SIGINT)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), StopsCommand():  # noqa: PT012
        Callback()
        time.sleep(5)
    assert time.monotonic() - start < 4


def test_an_interrupt_that_is_lost_again_at_once_is_raised_all_the_same(
    heeded_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where the thread that raises it may run before its start returns."""
    start, num_starts = threading.Timer.start, 0

    def slow_start(timer: threading.Timer) -> None:
        nonlocal num_starts
        num_starts += 1
        start(timer)
        if num_starts == 1:
            timer.join()
            time.sleep(0.01)  # the handler runs

    monkeypatch.setattr(threading.Timer, "start", slow_start)
    test_an_interrupt_that_a_callback_swallows_is_raised_again(None)
    assert num_starts == 2


def test_signals_of_one_moment_raise_once(
    heeded_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second would leave half of what is cleaned up after the first."""
    cleaned = []
    with pytest.raises(SystemExit), StopsCommand():  # noqa: PT012
        try:
            stop(signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
    assert cleaned
    monkeypatch.setattr(interrupt, "_SAME_WISH_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), StopsCommand():  # noqa: PT012
        try:
            stop(signal.SIGTERM)
        finally:
            stop(signal.SIGINT)


def test_an_interrupted_import_is_no_error_of_the_experiment(
    tmp_path: Path, heeded_signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """NumPy, for one, raises ImportError when it is interrupted."""
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "import os, time\n"
        "try:\n"
        "    os.kill(os.getpid(), 2)\n"
        "    time.sleep(5)\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('broken')\n"
    )
    assert main([f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]) == 130
    assert capsys.readouterr().err == ""


# Runs a command, and presses Ctrl-C when it begins to import a module, the N-th in `main`.
_INTERRUPTED_IMPORT = """
import os, runpy, sys
number, imported = int(sys.argv.pop(1)), []
def interrupt(event, details):
    if event == "import" and (imported or details[0] == "argparse"):
        imported.append(details[0])
        if len(imported) == number:
            os.kill(os.getpid(), 2)
sys.addaudithook(interrupt)
runpy.run_module("charrnn_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [1, 10, 100, 300, 600])
def test_ctrl_c_while_the_program_starts_prints_no_traceback(
    heeded_signals: None, number: int
) -> None:
    """At the given import after the first line of `main`; before it, Python prints its own."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IMPORT, str(number), "evaluate", "--workdir=missing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_an_import_ends_the_process_at_once(
    tmp_path: Path, heeded_signals: None, number: int
) -> None:
    """An exception in the middle of loading a library in C++ would crash the process."""
    (tmp_path / "slow_library.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(5)\nprint('imported')\n"
    )
    program = (
        "from charrnn_jax.training.interrupt import StopsCommand\n"
        "with StopsCommand():\n"
        "    try:\n"
        "        import slow_library\n"
        "    finally:\n"
        "        print('cleaned')\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
