"""May a config be trained in a workdir, and what was saved there?

All that is wrong with a workdir is said before a text is read and a model is made.
"""

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax.config import diff, from_dict
from charrnn_jax.errors import UserError
from charrnn_jax.training.checkpoints import read_metadata, set_aside_damaged, steps

# A run may go on with other values of these (but of train.init_from); all others are part of what
# it is. (The protocol is: the best checkpoint is found by comparing losses. The path of a text may
# change, its sha256 not.)
_MAY_CHANGE = (
    "data.path",
    "model.implementation",
    "train.",
    "sample.",
    "evaluation.batch_size",
    "optimizer.learning_rate",
    "optimizer.schedule",
)


def read_saved(workdir: Path, *, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the metadata of the latest checkpoint; None: a new run. Prints what has changed.

    Args:
      workdir: of the run; need not be there.
      config: that is to be trained, or to go on, there.

    Raises:
      UserError: the workdir cannot be used, or holds another run.
    """
    _check_workdir(workdir, config.data.path)
    set_aside_damaged(workdir)
    there = steps(workdir)
    if not there:
        return None
    saved = read_metadata(workdir, there[-1])
    if not saved["corpus"]["num_chars"]:
        raise UserError(
            f"{workdir} holds an imported model: train in another --workdir that starts from it, "
            f"with --config.train.init_from={workdir}"
        )
    for change in check_same_run(from_dict(saved["config"]), config, workdir):
        print(f"Changed since the run was saved: {change}")
    return saved


def _check_workdir(workdir: Path, text: str) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is no folder: give another --workdir")
    there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"cannot write to {there}: give another --workdir")
    folder = Path(text).expanduser().resolve()
    if text and folder.is_dir() and folder in (workdir.resolve(), *workdir.resolve().parents):
        raise UserError(
            f"the workdir {workdir} is inside the folder of the text, {folder}, and would become a "
            "part of it: give another --workdir"
        )


def check_same_run(old: ConfigDict, new: ConfigDict, workdir: Path) -> list[str]:
    """Returns what has changed, in words, of a run that goes on with another config.

    Raises:
      UserError: it is another run.
    """
    changes = {
        name: f"{name} {before!r} -> {after!r}" for name, (before, after) in diff(old, new).items()
    }
    forbidden = [
        text
        for name, text in changes.items()
        if not name.startswith(_MAY_CHANGE) or name == "train.init_from"
    ]
    if forbidden:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(forbidden)}): give another "
            "--workdir, or the same config"
        )
    return list(changes.values())
