"""Files and folders that appear whole or not at all."""

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
    """Gives the path of a neighbour to write to; renames it to `file` once all went well.

    The folder is made if it is not there. Killed or failed in the middle, `file` is what it was.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, file)
    except OSError as error:
        if error.filename == str(partial):  # nobody knows it by that name
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def creating(folder: Path) -> Iterator[Path]:
    """Gives a new neighbour to write files to; renames it to `folder` once all went well.

    Killed or failed in the middle, there is no `folder`; an empty one counts as none.

    Raises:
      UserError: there is something already; it is left as it is.
    """
    folder = folder.resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is there already: delete it, or give another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    for remains in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        if not _is_alive(int(remains.name.split(".")[-2])):
            shutil.rmtree(remains, ignore_errors=True)  # of a process that was killed here
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def lock(folder: Path, *, doing: str) -> int:
    """Locks a folder until the process ends or closes the descriptor that is returned.

    Raises:
      BusyError: another process has it.
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
    """Keeps other processes out of a folder, which is made if it is not there.

    Folders that were made for it and are still empty at the end are removed again.

    Args:
      folder: the folder.
      doing: what this process does, for the errors of others, such as "training".

    Raises:
      UserError: the folder cannot be made.
      BusyError: another process has it.
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
        with contextlib.suppress(OSError):  # something is in it
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
        os.close(descriptor)  # of a folder that its last process has just removed


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return process != os.getpid()  # it had our number
