"""Files and folders that appear whole or not at all, and locks on folders."""

import contextlib
import errno
import fcntl
import glob
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from charrnn_jax.errors import BusyError, UserError, file_error

# A cache may be shared by machines, where the same number is another process.
_MACHINE = re.sub(r"\W", "_", platform.node())[:40]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a temporary path next to `file` to write to, and renames it to `file` on success.

    The folder is created if it is missing. If the process fails or is killed, or the power fails,
    `file` is either unchanged or complete.
    """
    partial = _partial(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(file.parent, file.name)
    try:
        yield partial
        sync(partial)  # before the renaming, else a power failure could leave an empty `file`
        os.replace(partial, file)
        sync(file.parent)
    except OSError as error:
        if (named := _with_final_name(error, partial, file)) is error:
            raise
        raise named from error
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
    partial = _partial(folder)
    remove_remains(folder.parent, folder.name)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        os.replace(partial, folder)
        sync(folder.parent)
    except OSError as error:
        if (named := _with_final_name(error, partial, folder)) is error:
            raise
        raise named from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_final_name(error: OSError, partial: Path, final: Path) -> OSError:
    """Returns the error with the name of what was to be written, which the user has seen.

    An error of writing to an open file, such as that of a full disk, has no name at all.
    """
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    if error.errno is None or (names and not any(name.startswith(str(partial)) for name in names)):
        return error
    return OSError(error.errno, error.strerror, str(final))


def sync(path: Path) -> None:
    """Waits until a file, or the list of files in a folder, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without this promise
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until a folder and everything in it is on the disk itself."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _partial(path: Path) -> Path:
    """Returns a temporary path next to `path`, which names this process and its machine."""
    return path.with_name(f".{path.name}.{_MACHINE}.{os.getpid()}.partial")


def remove_remains(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes of this machine have left in a folder while they wrote there.

    Args:
      folder: the folder.
      name: name of the file or folder that they wrote; None: any.
    """
    pattern = "*" if name is None else glob.escape(name)
    for remains in folder.glob(f".{pattern}.{_MACHINE}.*.partial"):
        process = remains.name.split(".")[-2]
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        if remains.is_dir():
            shutil.rmtree(remains, ignore_errors=True)
        else:
            remains.unlink(missing_ok=True)


def delete_oldest(files: Sequence[Path], *, keep: Path, most_bytes: int) -> None:
    """Deletes files, the first ones first, down to a number of bytes in all.

    Args:
      files: files of a cache; those that were used last come last.
      keep: the file that is needed now.
      most_bytes: size of all files that is allowed, in bytes.
    """
    sizes = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # deleted by another process
            sizes[file] = file.stat().st_size
    total = sum(sizes.values())
    for file, size in sizes.items():
        if total > most_bytes and file != keep:
            total -= size
            file.unlink(missing_ok=True)  # a process that has mapped it keeps its content


def lock(folder: Path, *, doing: str) -> int:
    """Locks a folder until the process ends or closes the returned file descriptor.

    Args:
      folder: an existing folder.
      doing: what a process that holds this lock does, such as "training"; used in the error.

    Raises:
      BusyError: another process holds the lock.
      UserError: the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"another process is {doing} in {folder}: wait, or stop it") from error
    except OSError as error:  # a file system without locks
        os.close(descriptor)
        raise file_error(error, path=folder, doing="lock") from error
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
        raise file_error(error, path=folder, doing="write to") from error
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
