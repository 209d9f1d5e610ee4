"""Whether a config can be trained in a workdir, and what was saved there.

Problems with a workdir are reported before a text is read or a model is made. A workdir is locked
before anything in it is read or moved.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from charrnn_jax.config import diff, from_dict
from charrnn_jax.errors import UserError, shown
from charrnn_jax.files import locked
from charrnn_jax.processes import from_first
from charrnn_jax.workdir.checkpoints import read_metadata, set_aside_damaged, steps
from charrnn_jax.workdir.metadata import CheckpointMetadata

# Fields that may change when a run is resumed; a change of any other field makes it another run.
# The protocol may not change, since the best checkpoint is found by comparing losses. The path of
# the text may change, but not its SHA-256.
_MAY_CHANGE = (
    "data.path",
    "model.implementation",
    "train.",
    "sample.",
    "evaluation.batch_size",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.decay_fraction",
)
_MAY_NOT_CHANGE = (
    *("train.init_from", "train.loss", "train.step", "train.regularisers"),
    *("train.activation_penalty", "train.temporal_penalty", "train.averaging"),
    *("train.length_warmup_steps", "train.initial_length"),
    *("train.sampled_inputs", "train.sampled_share", "train.rollout_length"),
)


@contextmanager
def locked_for_training(workdir: Path, *, text: str = "") -> Iterator[None]:
    """Locks a workdir, which need not exist yet, and sets damaged checkpoints aside.

    In a job of several processes, only the first does so.

    Args:
      workdir: workdir of the run.
      text: path of the user's own text to train on; "": a known corpus.

    Raises:
      UserError: the workdir cannot be used, or all of its checkpoints are damaged.
      BusyError: another process is training there.
    """
    with ExitStack() as stack:

        def enter() -> None:
            _check_workdir(workdir, text)
            stack.enter_context(locked(workdir, doing="training"))
            set_aside_damaged(workdir)

        from_first(enter)
        yield


def find_resumable(workdir: Path, *, config: ConfigDict) -> CheckpointMetadata | None:
    """Returns the metadata of the latest checkpoint, or None for a new run.

    Args:
      workdir: workdir of the run, which must be locked.
      config: config to train there.

    Raises:
      UserError: the workdir holds another run.
    """
    if not (saved_steps := steps(workdir)):
        return None
    saved = read_metadata(workdir, saved_steps[-1])
    if saved.imported:
        raise UserError(
            f"{workdir} holds an imported model, which cannot be resumed: start from it in another "
            f"--workdir, with --config.train.init_from={workdir}"
        )
    check_same_run(from_dict(saved.config), config, workdir)
    return saved


def _check_workdir(workdir: Path, text: str) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is not a folder: give another --workdir")
    there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"cannot write to {there}: give another --workdir")
    if not (text and os.path.isdir(os.path.expanduser(text))):
        return
    folder = Path(text).expanduser().resolve()
    if folder in (workdir.resolve(), *workdir.resolve().parents):
        raise UserError(
            f"the workdir {workdir} is inside the folder of the text, {folder}, and its files "
            "would become part of the text: give another --workdir"
        )


def check_same_run(old: ConfigDict, new: ConfigDict, workdir: Path) -> list[str]:
    """Returns what has changed, in words, if a run is resumed with a new config.

    Args:
      old: config of the run.
      new: config to resume it with.
      workdir: workdir of the run.

    Raises:
      UserError: with the new config it would be another run.
    """
    changes = {
        name: f"{name} {shown(before)} -> {shown(after)}"
        for name, (before, after) in diff(old, new).items()
    }
    forbidden = [
        text
        for name, text in changes.items()
        if not name.startswith(_MAY_CHANGE) or name in _MAY_NOT_CHANGE
    ]
    if forbidden:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(forbidden)}): give another "
            "--workdir, or the same config"
        )
    return list(changes.values())
