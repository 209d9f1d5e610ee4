"""Checkpoints: trees of arrays and their metadata, written by Orbax.

A checkpoint is a folder `checkpoints/<step>/` that is complete in itself: parameters, everything
else that training needs, and `CheckpointMetadata`. Orbax writes it in the background under a
temporary name and renames it, so a killed process leaves the previous one. Orbax has no checksums,
so a manifest with the SHA-256 of every file is written just before the renaming. Before training, a
checkpoint that does not match its manifest is set aside, and the previous one is used. This module
knows nothing of models and training.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

from charrnn_jax.errors import DivergedError, TrainingError, UserError, file_error, shown
from charrnn_jax.files import sync, sync_tree
from charrnn_jax.messages import PROGRESS
from charrnn_jax.processes import from_first, is_first_process
from charrnn_jax.reading import Sha256, read_json
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.quiet_orbax import QuietOrbax

T = TypeVar("T")
_MANIFEST = "sha256.json"
_FOLDER = "checkpoints"


class Checkpoints:
    """Writes the checkpoints of one run; keeps the latest, the one before it, and the best.

    The workdir must be locked, see `resume.locked_for_training`. In a job of several processes,
    only the first writes manifests and deletes. Use it as a context manager, which waits for the
    last write at the end.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.folder = workdir.resolve() / _FOLDER
        self.losses = from_first(self._open)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._sign),
        )
        self._unfinished: int | None = None  # the step that is being written

    def _open(self) -> dict[int, float | None]:
        """Creates and cleans the folder; returns the loss of each checkpoint, by step."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "give another --workdir"
            raise file_error(error, path=self.folder, doing="write to", remedy=remedy) from error
        for pattern in ("*.deleted", "*.orbax-checkpoint-tmp*"):
            for remains in self.folder.glob(pattern):  # left by a process that was killed
                shutil.rmtree(remains, ignore_errors=True)
        return {step: read_metadata(self.workdir, step).loss for step in steps(self.workdir)}

    def __enter__(self) -> "Checkpoints":
        self._quiet = QuietOrbax(self.folder)
        return self

    def __exit__(self, *exception: Any) -> None:
        failure = exception[1]
        try:
            self.wait()
        except TrainingError as error:
            failure = error
            raise
        finally:
            with contextlib.suppress(*([OSError, ValueError] if failure else [])):
                self._checkpointer.close()  # raises again if several parts could not be written
            self._quiet.end(failure=failure)

    @property
    def latest(self) -> int | None:
        """The last step that was saved; None: there is none."""
        return max(self.losses, default=None)

    def save(self, params: Any, rest: Any, *, metadata: CheckpointMetadata) -> None:
        """Saves a checkpoint in the background; returns as soon as the arrays may be overwritten.

        Args:
          params: parameters of the model, which can be read without the rest.
          rest: tree of everything else that resuming needs; None: the run will not be resumed.
          metadata: metadata of the checkpoint. Its step must be above all steps that were saved
            before; the latest step again is ignored. Its loss decides which checkpoint is the best.

        Raises:
          TrainingError: this checkpoint or the previous one could not be written.
          DivergedError: the parameters are not finite.
        """
        step = metadata.step
        if step == self.latest:
            return
        if not math.isfinite(optax.tree.norm(params)):
            raise DivergedError(
                f"the parameters after step {step:,} are not finite, so they were not saved: try a "
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
        sync_tree(folder)

    def wait(self) -> None:
        """Waits for the write in progress, then deletes checkpoints that are no longer kept.

        Raises:
          TrainingError: the checkpoint could not be written.
        """
        if (step := self._unfinished) is None:
            return
        try:
            self._checkpointer.wait_until_finished()  # raises errors of the background write
            if is_first_process():
                sync(self.folder)
        except (OSError, ValueError) as error:
            del self.losses[step]
            raise _write_failed(self.folder, error) from error
        finally:
            self._unfinished = None
        kept = {*sorted(self.losses)[-2:], best_step(self.losses)}
        for old in set(self.losses) - kept:
            self._delete(old)

    def go_back(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in [later for later in self.losses if later > step]:
            self._delete(later)

    def _delete(self, step: int) -> None:
        del self.losses[step]
        if not is_first_process():
            return
        # Renamed first, so that a kill in the middle does not leave half a checkpoint.
        remains = self.folder / f"{step}.deleted"
        os.replace(self.folder / str(step), remains)
        shutil.rmtree(remains, ignore_errors=True)

    def restore(self, params: Any, rest: Any) -> tuple[Any, Any, CheckpointMetadata] | None:
        """Reads the latest checkpoint.

        Args:
          params: tree of arrays with the shapes of the parameters and the devices to put them on.
          rest: tree of the same kind for everything else.

        Returns:
          (params, rest, metadata), or None if there is no checkpoint.

        Raises:
          UserError: the checkpoint is damaged or has other shapes.
          TrainingError: the same, in one of several processes.
        """
        if (step := self.latest) is None:
            return None
        folder = self.folder / str(step)
        try:
            params, rest = _read(folder / "params", params), _read(folder / "training", rest)
            _check_finite(folder, params)
        except UserError as error:
            if jax.process_count() > 1:  # perhaps only here: the others must not wait
                raise TrainingError(str(error)) from error
            raise
        return params, rest, from_first(lambda: read_metadata(self.workdir, step))


def set_aside_damaged(workdir: Path) -> None:
    """Moves damaged checkpoints to `damaged_checkpoints/`, with a warning. Nothing is deleted.

    A checkpoint is damaged if it is incomplete or does not match its checksums.

    Args:
      workdir: workdir of the run.

    Raises:
      UserError: there were checkpoints, but all of them are damaged.
    """
    for folder in _step_folders(workdir):
        if not (problem := find_damage(workdir, int(folder.name))):
            continue
        aside = workdir / "damaged_checkpoints" / f"{folder.name}-{time.time_ns()}"
        warnings.warn(
            f"checkpoint {folder} is damaged ({problem}), and is moved to {aside.parent}",
            stacklevel=2,
        )
        aside.parent.mkdir(exist_ok=True)
        os.replace(folder, aside)
    if (workdir / "damaged_checkpoints").is_dir() and not steps(workdir):
        raise UserError(
            f"all checkpoints of {workdir} are damaged; they are in "
            f"{workdir / 'damaged_checkpoints'}: train in another --workdir, or delete this one"
        )


def steps(workdir: Path) -> list[int]:
    """Returns the steps of a run's checkpoints, in ascending order; some may be damaged."""
    return sorted(int(folder.name) for folder in _step_folders(workdir))


def exists(workdir: Path, step: int) -> bool:
    """Returns whether the checkpoint is there: training deletes those that it no longer keeps."""
    return (workdir / _FOLDER / str(step)).is_dir()


def _step_folders(workdir: Path) -> list[Path]:
    folder = workdir / _FOLDER
    if not folder.is_dir():
        return []
    # As `str(step)` writes them: other names, such as 050, are none of ours.
    return [path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name)]


def best_step(losses: dict[int, float | None]) -> int | None:
    """Returns the step with the lowest validation loss; the latest, if no loss is known.

    Args:
      losses: validation loss by step; None: not measured.
    """
    known = {
        step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)
    }
    return min(known, key=lambda step: known[step]) if known else max(losses, default=None)


def choose_step(workdir: Path, which: str | int) -> int:
    """Returns the step of a checkpoint.

    Args:
      workdir: workdir of the run.
      which: "best", "latest" or a step.

    Raises:
      UserError: there is no such checkpoint; the message lists those that exist.
    """
    there = steps(workdir)
    if not there:
        raise UserError(
            f"there is no checkpoint in {workdir}: train first, or give another --workdir"
        )
    if which == "latest":
        return there[-1]
    if which == "best":
        losses: dict[int, float | None] = {}
        for step in there:
            try:
                losses[step] = read_metadata(workdir, step).loss
            except UserError:
                if exists(workdir, step):
                    raise
        best = best_step(losses)
        return choose_step(workdir, which) if best is None else best
    if str(which).isdecimal() and len(str(which)) < 20 and int(which) in there:
        return int(which)
    raise UserError(
        f"{workdir} has no checkpoint {shown(which)}: choose best, latest, or one of the steps "
        + ", ".join(map(str, there))
    )


def read_metadata(workdir: Path, step: int) -> CheckpointMetadata:
    """Returns the metadata of one checkpoint.

    Args:
      workdir: workdir of the run.
      step: step of the checkpoint.

    Raises:
      UserError: the metadata are damaged.
    """
    folder = workdir / _FOLDER / str(step)
    try:
        return _load_metadata(folder)
    except _Damaged as error:
        raise _unreadable(folder, error) from error


def read_params(workdir: Path, step: int, *, template: Any) -> Any:
    """Returns the parameters of one checkpoint.

    Args:
      workdir: workdir of the run.
      step: step of the checkpoint.
      template: tree of arrays or `jax.ShapeDtypeStruct`s with the shapes of the parameters.

    Raises:
      UserError: the checkpoint is damaged, has other shapes, or numbers that are not finite.
    """
    folder = workdir.resolve() / _FOLDER / str(step)
    try:
        _check_digests(folder, "params")
    except _Damaged as error:
        raise _unreadable(folder, error) from error
    params = _read(folder / "params", template)
    _check_finite(folder, params)
    return params


def _check_finite(folder: Path, params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise _unreadable(folder, f"its parameters {name} are not finite")


def _read(item: Path, template: Any) -> Any:
    """Reads one item of a checkpoint to the devices of the template's arrays, or to one device."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or one_device)

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(item, jax.tree.map(place, template))
    except Exception as error:  # Orbax raises errors of many types
        if "RESOURCE_EXHAUSTED" in str(error):  # no fault of the file
            raise
        raise _unreadable(item.parent, error) from error


class _Damaged(Exception):
    """A checkpoint is not as it was written; the message says in which way."""


def find_damage(workdir: Path, step: int) -> str:
    """Returns what is wrong with a checkpoint, in a few words; "": nothing.

    Args:
      workdir: workdir of the run.
      step: step of the checkpoint.

    Raises:
      UserError: its files cannot be read, which says nothing about their content.
    """
    folder = workdir.resolve() / _FOLDER / str(step)
    try:
        _check_digests(folder)
        _load_metadata(folder)
    except _Damaged as error:
        return str(error)
    return ""


def _load_metadata(folder: Path) -> CheckpointMetadata:
    _check_digests(folder, "metadata")
    try:
        metadata = CheckpointMetadata.from_dict(
            _read_json(folder / "metadata" / "metadata", dict[str, Any])
        )
    except UserError as error:
        raise _Damaged(f"its metadata are not valid: {error.__cause__ or error}") from error
    if str(metadata.step) != folder.name:
        raise _Damaged(f"it was written after step {metadata.step}, and renamed since")
    return metadata


def _check_digests(folder: Path, item: str = "*") -> None:
    """Compares a checkpoint, or one item of it, with its manifest."""
    manifest = _read_json(folder / _MANIFEST, dict[str, Sha256])
    try:
        digests = _digests(folder, item)
    except OSError as error:
        raise file_error(error, path=error.filename or folder, doing="read") from error
    if digests != {n: d for n, d in manifest.items() if item in ("*", n.split("/")[0])}:
        raise _Damaged("its files do not match their checksums")


def _read_json(file: Path, shape: type[T]) -> T:
    if not file.exists():
        raise _Damaged(f"{file.name} is missing")
    try:
        return read_json(file, shape, remedy="use another checkpoint")
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise  # whatever it contains, it cannot be read
        raise _Damaged(f"its {file.name} is not valid") from error


def _digests(folder: Path, item: str = "*") -> dict[str, str]:
    """Returns the SHA-256 of each file of an item, or of all items; other files are Orbax's own."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that may not be read is not empty

    digests = {}
    for part in filter(Path.is_dir, folder.glob(item)):
        for place, _, names in os.walk(part, onerror=refuse):
            for file in (Path(place) / name for name in names):
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                digests[file.relative_to(folder).as_posix()] = digest
    return dict(sorted(digests.items()))


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
