"""Files and folders that appear whole or not at all, and locks on folders."""

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from charrnn_jax.errors import BusyError, UserError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a temporary path next to `file` to write to, and renames it to `file` on success.

    The folder is created if it is missing. If the process fails or is killed, `file` is unchanged.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, file)
    except OSError as error:
        if error.filename == str(partial):  # a name that the user has not seen
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `folder` to fill, and renames it to `folder` on success.

    If the process fails or is killed, `folder` does not appear. An existing `folder` must be empty.

    Raises:
      UserError: `folder` exists and is not empty; it is left unchanged.
    """
    folder = folder.resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} already exists: delete it, or give another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    for remains in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        if not _is_alive(int(remains.name.split(".")[-2])):
            shutil.rmtree(remains, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def lock(folder: Path, *, doing: str) -> int:
    """Locks a folder until the process ends or closes the returned file descriptor.

    Args:
      folder: an existing folder.
      doing: what a process that holds this lock does, such as "training"; used in the error.

    Raises:
      BusyError: another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise BusyError(f"another process is {doing} in {folder}: wait, or stop it") from error
    return descriptor


@contextmanager
def locked(folder: Path, *, doing: str) -> Iterator[None]:
    """Holds the lock of a folder, and creates the folder if it is missing.

    Folders that were created for this and are still empty at the end are removed.

    Args:
      folder: the folder.
      doing: what a process that holds this lock does, such as "training"; used in the error.

    Raises:
      UserError: the folder cannot be created.
      BusyError: another process holds the lock.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        descriptor = _make_and_lock(folder, doing=doing)
    except BusyError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
        os.close(descriptor)


def _make_and_lock(folder: Path, *, doing: str) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock(folder, doing=doing)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == folder.stat().st_ino:
                return descriptor
        os.close(descriptor)  # the last process has just removed this folder


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return process != os.getpid()  # a dead process that had the same id
