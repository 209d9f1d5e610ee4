"""Typed, bounded readers of files that others may have written or damaged.

Whatever a file holds, a reader returns data of the expected shape or raises `UserError` with one
line that says what is wrong, where, and what to do. It reads regular files of a bounded size only,
and never prints the data. This module knows the formats JSON and .npz, but not what they are for.
"""

import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from charrnn_jax.errors import UserError, shortened

T = TypeVar("T")
MAX_BYTES = 1 << 26  # of a JSON file, unless its reader says otherwise
_MAX_DEPTH = 32  # lists and objects inside each other
_MAX_DIGITS = 19  # of a whole number, about as many as 64 bits hold
_MAX_COMPRESSION = 1000  # zlib cannot compress more than that

Scalar = bool | int | float | str | None
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Finite = Annotated[float, msgspec.Meta(ge=-1.7e308, le=1.7e308)]  # NaN is not
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


def refuse_device(file: str | Path) -> None:
    """Raises UserError if a path names a device, which may have no end. A pipe is no device."""
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):  # missing: whoever opens it says so
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise UserError(f"{file} is a device or a socket: give a file")


def read_bytes(file: str | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file.

    Args:
      file: path of the file.
      max_bytes: size of the largest file that is read, in bytes.

    Raises:
      UserError: the file is missing, cannot be read, is larger, or is not a regular file.
    """
    try:
        with open(file, "rb", opener=_open_at_once) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise UserError(f"{file} is not a regular file: give another")
            content = opened.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except UserError:
        raise
    except ValueError as error:  # a NUL character
        raise UserError(f"{str(file)!r} is not a path: give another") from error
    if len(content) > max_bytes:
        raise UserError(f"{file} has more than {max_bytes:,} bytes: give another file")
    return content


def _open_at_once(file: str, flags: int) -> int:
    """Opens a file without waiting: a pipe that nobody writes to would never open."""
    return os.open(file, flags | os.O_NONBLOCK)


def read_json(file: str | Path, shape: type[T], *, remedy: str, max_bytes: int = MAX_BYTES) -> T:
    """Returns the data of a JSON file.

    Args:
      file: path of the file.
      shape: type of the data, such as `dict[str, int]` or a dataclass. Fields that it does not
        have are ignored.
      remedy: what the user can do if the file is damaged.
      max_bytes: size of the largest file that is read, in bytes.

    Raises:
      UserError: the file cannot be read, is not JSON, or holds data of another shape.
    """
    return parse_json(read_bytes(file, max_bytes=max_bytes), shape, name=str(file), remedy=remedy)


def parse_json(text: str | bytes, shape: type[T], *, name: str, remedy: str) -> T:
    """Returns the data of a JSON text; NaN and Infinity are allowed where `shape` allows them.

    Args:
      text: the text, which may begin with a byte order mark.
      shape: type of the data, see `read_json`.
      name: what the text is, for the error.
      remedy: what the user can do if it is damaged.

    Raises:
      UserError: the text is not JSON, or holds data of another shape.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        data = json.loads(text, parse_int=_parse_int)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) if isinstance(error, ValueError) else "too deeply nested"
        raise _damaged(name, f"not JSON: {reason}", remedy) from error
    if _is_deep(data):
        raise _damaged(name, "too deeply nested", remedy)
    return typed(data, shape, name=name, remedy=remedy)


def typed(data: object, shape: type[T], *, name: str, remedy: str) -> T:
    """Returns plain data as a type, after a check of everything in it.

    Args:
      data: dictionaries, lists, strings and numbers, as JSON has them.
      shape: type of the data, see `read_json`.
      name: what the data are, for the error.
      remedy: what the user can do if they are damaged.

    Raises:
      UserError: the data have another shape.
    """
    try:
        return msgspec.convert(data, shape)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
        raise _damaged(name, str(error), remedy) from error


def read_npz(file: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file, in their order in the file. Pickles are not opened.

    Raises:
      UserError: the file cannot be read, or holds anything else than arrays of numbers.
    """
    refuse_device(file)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is not a regular file")
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        # What is inside may not be larger than a file of this size can hold.
        if size > _MAX_COMPRESSION * os.path.getsize(file):
            raise ValueError("its sizes are wrong")
        # Opened here, since np.load does not close a damaged file that it has opened itself.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except OSError as error:
        reason = error.strerror or "the file is damaged"
        raise UserError(f"cannot read {file}: {reason}") from error
    except Exception as error:  # zipfile and NumPy raise errors of a dozen types
        raise UserError(f"{file} is damaged ({shortened(str(error))})") from error


def _damaged(name: str, reason: str, remedy: str) -> UserError:
    return UserError(f"{name} is damaged ({shortened(reason)}): {remedy}")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS + 1:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _is_deep(data: object) -> bool:
    """Returns whether lists and objects are inside each other more than `_MAX_DEPTH` deep."""
    level: list[Any] = [data]
    for _ in range(_MAX_DEPTH):
        level = [outer for outer in level if isinstance(outer, dict | list)]
        if not level:
            return False
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return True
