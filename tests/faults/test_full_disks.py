"""A disk that is full: one line that names the path and what to do, and exit code 1."""

import ctypes
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SENTENCE
from helpers import SMOKE, last_line_of_error, slow

from charrnn_jax.data import corpora
from charrnn_jax.files import creating, replacing
from charrnn_jax.main import main

KIB = 1024


@contextmanager
def no_room(folder: Path, *, num_bytes: int = 8 * KIB) -> Iterator[None]:
    """A folder that holds no more than so many bytes: a small disk, or without the right to mount
    one a limit on the size of all files."""
    folder.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(folder)
    if os.geteuid() == 0 and libc.mount(b"tmpfs", target, b"tmpfs", 0, b"size=%d" % num_bytes) == 0:
        try:
            yield
        finally:
            assert libc.umount2(target, 2) == 0
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    own = [f"--config.data.path={text_file}", "--config.sample.prompt=The"]
    assert main([SMOKE, f"--workdir={workdir}", *own]) == 0
    return workdir


def assert_named(error: str, folder: Path) -> None:
    assert str(folder) in error
    assert "partial" not in error
    assert "make room there" in error


def test_files_and_folders_that_find_no_room_are_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with no_room(disk):
        with (
            pytest.raises(OSError, match=r"No space|too large") as file,
            replacing(disk / "a") as a,
        ):
            a.write_bytes(bytes(64 * KIB))
        with (
            pytest.raises(OSError, match=r"No space|too large") as folder,
            creating(disk / "b") as b,
        ):
            (b / "c").write_bytes(bytes(64 * KIB))
        assert not list(disk.iterdir())
    assert (file.value.filename, folder.value.filename) == (str(disk / "a"), str(disk / "b"))


def test_text_from_a_pipe_that_finds_no_room_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stdin:
        buffer = io.BytesIO(SENTENCE.encode() * 1000)

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stdin", Stdin())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    arguments = [SMOKE, f"--workdir={tmp_path / 'run'}", "--config.data.path=-"]
    with no_room(tmp_path / "disk"):
        assert main(arguments) == 1
        assert_named(error := last_line_of_error(capsys), tmp_path / "disk")
        assert "TMPDIR" in error


@pytest.mark.parametrize("flags", [("folder", "exported"), ("web", "model.html")])
def test_export_that_finds_no_room_is_one_line(
    trained: Path, tmp_path: Path, flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "disk" / flags[1]
    with no_room(tmp_path / "disk"):
        command = ["export", f"--workdir={trained}", f"--format={flags[0]}", f"--output={output}"]
        assert main(command) == 1
        assert_named(last_line_of_error(capsys), output)
        assert not list((tmp_path / "disk").iterdir())


def test_import_that_finds_no_room_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    characters, e, h = "abc", 4, 300
    (tmp_path / "vocabulary.json").write_text(json.dumps(list(characters)))
    shapes = [(3, e), (e, 3 * h), (h, 3 * h), (2, 3 * h), (h, 3), (3,)]
    np.savez(tmp_path / "model.npz", *(np.ones(shape, np.float32) for shape in shapes))
    files = [f"--weights={tmp_path / 'model.npz'}", f"--vocabulary={tmp_path / 'vocabulary.json'}"]
    with no_room(tmp_path / "disk"):
        assert main(["import", *files, f"--workdir={tmp_path / 'disk' / 'run'}"]) == 1
        assert_named(last_line_of_error(capsys), tmp_path / "disk" / "run")


def test_download_that_finds_no_room_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("CHARRNN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(corpora, "_download_and_store", full)
    with pytest.raises(RuntimeError, match=r"cannot download to .*No space left.*TMPDIR"):
        corpora.load_corpus("shakespeare")


def test_evaluation_that_cannot_be_written_is_a_warning(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    (trained / "evaluation.json").mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["evaluate", f"--workdir={trained}"]) == 0
    finally:
        (trained / "evaluation.json").rmdir()
    shown = capsys.readouterr()
    assert "nats/char" in shown.out
    warning = f"charrnn: warning: cannot write {trained / 'evaluation.json'} (Is a directory)"
    assert shown.err.splitlines()[-1] == f"{warning}: the losses are printed only"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_finds_no_room_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "charrnn_jax.main", "corpora"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("charrnn: error: cannot use standard output (No space left on device)")


@pytest.mark.parametrize("num_kib", [64, slow(256)])
def test_training_that_finds_no_room_says_so_once(
    text_file: Path, tmp_path: Path, num_kib: int
) -> None:
    """Orbax and its libraries would say more, from several threads, until Python exits."""
    own = [f"--config.data.path={text_file}", "--config.sample.prompt=The"]
    often = ["--config.train.checkpoint_every_steps=5", "--config.train.num_steps=500"]
    with no_room(tmp_path / "disk", num_bytes=num_kib * KIB):
        command = [SMOKE, f"--workdir={tmp_path / 'disk' / 'run'}", *own, *often]
        done = subprocess.run(
            [sys.executable, "-m", "charrnn_jax.main", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "warning: " not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("charrnn: error: cannot ")
    assert_named(lines[0], tmp_path / "disk")
