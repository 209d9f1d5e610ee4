"""Files and folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from charrnn_jax.errors import UserError


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
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had our number
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
