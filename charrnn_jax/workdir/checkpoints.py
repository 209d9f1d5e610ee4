"""Checkpoints: trees of arrays and their metadata, written by Orbax.

A checkpoint is a folder `checkpoints/<step>/` that needs nothing beside it: parameters, the rest of
what training needs, and `CheckpointMetadata`. Orbax writes it in the background and makes it appear
by renaming, so a killed process leaves the one before. What Orbax does not have is a checksum:
every file's SHA-256 goes into a manifest just before the renaming, and a checkpoint that does not
match it is set aside and the one before it is used. Knows nothing of models and training.
"""

import hashlib
import json
import math
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp

from charrnn_jax.errors import DivergedError, TrainingError, UserError
from charrnn_jax.messages import PROGRESS
from charrnn_jax.processes import from_first, is_first_process
from charrnn_jax.workdir.metadata import CheckpointMetadata

_MANIFEST = "sha256.json"
_FOLDER = "checkpoints"


class Checkpoints:
    """Writes the checkpoints of one run; keeps the latest, the one before it, and the best.

    The caller has locked the workdir, see `resume.locked_for_training`. Of several processes only
    the first signs and deletes. Use as a context manager; leaving it waits for the last write.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.folder = workdir.resolve() / _FOLDER
        self.losses = from_first(self._open)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._sign),
        )
        self._unfinished: int | None = None  # the step whose write is under way

    def _open(self) -> dict[int, float | None]:
        """Makes and cleans the folder; returns the losses of its checkpoints."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}") from error
        for pattern in ("*.deleted", "*.orbax-checkpoint-tmp*"):
            for remains in self.folder.glob(pattern):  # of a process that was killed here
                shutil.rmtree(remains, ignore_errors=True)
        return {step: read_metadata(self.workdir, step).loss for step in steps(self.workdir)}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The last step that was saved."""
        return max(self.losses, default=None)

    def save(self, params: Any, rest: Any, *, metadata: CheckpointMetadata) -> None:
        """Saves in the background; returns as soon as the arrays may be overwritten.

        Args:
          params: tree of the parameters, which can be read alone.
          rest: tree of all else that resuming needs; None: the run will not be resumed.
          metadata: its step is above every step that was saved before (the same step again is
            ignored); its loss decides which checkpoint is the best.

        Raises:
          TrainingError: this or the previous checkpoint could not be written.
          DivergedError: the parameters are not finite.
        """
        step = metadata.step
        if step == self.latest:
            return
        if not math.isfinite(optax.tree.norm(params)):
            raise DivergedError(
                f"the parameters after step {step:,} are not finite; they were not saved: try a "
                "lower --config.optimizer.learning_rate"
            )
        self.wait()
        items = {"params": ocp.args.StandardSave(params)}
        if rest is not None:
            items["training"] = ocp.args.StandardSave(rest)
        items["metadata"] = ocp.args.JsonSave(metadata.to_dict())
        self._unfinished = step
        PROGRESS.debug(f"saving a checkpoint of step {step:,} in {self.folder}")
        try:
            self._checkpointer.save(self.folder / str(step), args=ocp.args.Composite(**items))
        except (OSError, ValueError) as error:
            self._unfinished = None
            raise _write_failed(self.folder, error) from error
        self.losses[step] = metadata.loss

    def _sign(self) -> None:
        """Writes the manifest. Orbax calls this in the background, before it renames the folder."""
        (folder,) = self.folder.glob(f"{self._unfinished}.orbax-checkpoint-tmp*")
        (folder / _MANIFEST).write_text(json.dumps(_digests(folder), indent=1))

    def wait(self) -> None:
        """Waits for the write under way, then deletes what is no longer kept.

        Raises:
          TrainingError: it failed.
        """
        if (step := self._unfinished) is None:
            return
        try:
            self._checkpointer.wait_until_finished()  # errors of the background come up here
        except (OSError, ValueError) as error:
            del self.losses[step]
            raise _write_failed(self.folder, error) from error
        finally:
            self._unfinished = None
        kept = {*sorted(self.losses)[-2:], best_step(self.losses)}
        for old in set(self.losses) - kept:
            self._delete(old)

    def go_back(self, step: int) -> None:
        """Deletes what was saved after a step."""
        for later in [later for later in self.losses if later > step]:
            self._delete(later)

    def _delete(self, step: int) -> None:
        del self.losses[step]
        if not is_first_process():
            return
        # Renamed first: a kill in the middle must not leave half a checkpoint.
        remains = self.folder / f"{step}.deleted"
        os.replace(self.folder / str(step), remains)
        shutil.rmtree(remains, ignore_errors=True)

    def restore(self, params: Any, rest: Any) -> tuple[Any, Any, CheckpointMetadata] | None:
        """Returns the latest (params, rest, metadata), or None if nothing was saved.

        Args:
          params: tree of arrays of the same shapes, which says where the arrays go.
          rest: the same for the rest.

        Raises:
          UserError: the checkpoint has other shapes.
        """
        if (step := self.latest) is None:
            return None
        folder = self.folder / str(step)
        params, rest = _read(folder / "params", params), _read(folder / "training", rest)
        return params, rest, from_first(lambda: read_metadata(self.workdir, step))


def set_aside_damaged(workdir: Path) -> None:
    """Moves checkpoints that are incomplete or fail their checksums out of the way, with a warning.

    They go to `damaged_checkpoints/`: nothing is deleted.

    Raises:
      UserError: none is left.
    """
    for folder in _step_folders(workdir):
        if _is_intact(folder.resolve()):
            continue
        aside = workdir / "damaged_checkpoints" / f"{folder.name}-{time.time_ns()}"
        warnings.warn(
            f"checkpoint {folder} is damaged: it is set aside in {aside.parent}",
            stacklevel=2,
        )
        aside.parent.mkdir(exist_ok=True)
        os.replace(folder, aside)
    if (workdir / "damaged_checkpoints").is_dir() and not steps(workdir):
        raise UserError(
            f"no checkpoint of {workdir} is intact; they are in {workdir / 'damaged_checkpoints'}: "
            "train in another --workdir, or delete this one"
        )


def steps(workdir: Path) -> list[int]:
    """Returns the steps of a run's complete checkpoints, in order."""
    folders = _step_folders(workdir)
    return sorted(int(folder.name) for folder in folders if (folder / _MANIFEST).is_file())


def _step_folders(workdir: Path) -> list[Path]:
    folder = workdir / _FOLDER
    return [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def best_step(losses: dict[int, float | None]) -> int | None:
    """Returns the step with the lowest validation loss; without any loss, the latest."""
    known = {
        step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)
    }
    return min(known, key=lambda step: known[step]) if known else max(losses, default=None)


def choose_step(workdir: Path, which: str | int) -> int:
    """Finds a checkpoint: "best", "latest" or a step.

    Raises:
      UserError: there is none; says which there are.
    """
    there = steps(workdir)
    if not there:
        raise UserError(f"{workdir} holds no checkpoint: train first, or give another --workdir")
    if which == "latest":
        return there[-1]
    if which == "best":
        best = best_step({step: read_metadata(workdir, step).loss for step in there})
        assert best is not None  # `there` is not empty
        return best
    if str(which).isdecimal() and int(which) in there:
        return int(which)
    raise UserError(
        f"{workdir} has no checkpoint {which!r}; there are best, latest, "
        + ", ".join(map(str, there))
    )


def read_metadata(workdir: Path, step: int) -> CheckpointMetadata:
    """Returns the metadata of one checkpoint.

    Raises:
      UserError: it is damaged.
    """
    folder = workdir / _FOLDER / str(step)
    _check_intact(folder, "metadata")
    try:
        return CheckpointMetadata.from_dict(
            json.loads((folder / "metadata" / "metadata").read_text())
        )
    except (KeyError, TypeError) as error:
        raise _unreadable(folder, f"its metadata are not as expected: {error}") from error


def read_params(workdir: Path, step: int, *, template: Any) -> Any:
    """Returns the parameters of one checkpoint.

    Args:
      workdir: of the run.
      step: of the checkpoint.
      template: tree of arrays or `jax.ShapeDtypeStruct`s with the same structure.

    Raises:
      UserError: the checkpoint is damaged, or has other shapes.
    """
    folder = workdir.resolve() / _FOLDER / str(step)
    _check_intact(folder, "params")
    return _read(folder / "params", template)


def _read(item: Path, template: Any) -> Any:
    """Restores one item of a checkpoint to where the template's arrays are; else on one device."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or one_device)

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(item, jax.tree.map(place, template))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(item.parent, error) from error


def _is_intact(folder: Path, item: str = "*") -> bool:
    """Whether a checkpoint, or one item of it, is what the manifest says."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return _digests(folder, item) == {
            name: digest for name, digest in manifest.items() if item in ("*", Path(name).parts[0])
        }
    except (OSError, ValueError, AttributeError):  # missing, or no JSON object
        return False


def _check_intact(folder: Path, item: str) -> None:
    if not _is_intact(folder, item):
        raise _unreadable(folder, "its files do not match their checksums")


def _digests(folder: Path, item: str = "*") -> dict[str, str]:
    """SHA-256 of every file of an item, or of all items; above them are only Orbax's marks."""
    files = sorted(file for file in folder.glob(f"{item}/**/*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def _write_failed(folder: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"cannot write a checkpoint to {folder} ({_one_line(error)}): make room there and start "
        "the same command again; it resumes from the last complete checkpoint"
    )


def _unreadable(folder: Path, error: Exception | str) -> UserError:
    return UserError(
        f"checkpoint {folder} cannot be used ({_one_line(error)}): choose another with "
        "--checkpoint=STEP, or delete it and train again"
    )


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:200]
