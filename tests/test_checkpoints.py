"""Checkpoints as training writes and reads them: damage, full disks, what is kept."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_bitwise_equal
from ml_collections import ConfigDict

from charrnn_jax.errors import BusyError, TrainingError, UserError
from charrnn_jax.files import locked
from charrnn_jax.training.loop import train
from charrnn_jax.training.replicas import train_replicas
from charrnn_jax.workdir import checkpoints as checkpoints_lib
from charrnn_jax.workdir import run as run_lib
from charrnn_jax.workdir.checkpoints import Checkpoints, best_step
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.run import load_run


def flip_a_bit(folder: Path) -> None:
    """In the largest file: the parameters themselves."""
    file = max(folder.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_going_back_deletes_later_checkpoints_and_no_others(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.train.num_steps, tiny_config.train.checkpoint_every_steps = 20, 10
    train(tiny_config, tmp_path)
    assert checkpoints_lib.steps(tmp_path) == [10, 20]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.go_back(10)
        assert checkpoints.latest == 10
    assert checkpoints_lib.steps(tmp_path) == [10]


@pytest.mark.parametrize(
    "damage", ["flipped bit", "empty folder", "no manifest", "metadata", "renamed"]
)
def test_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tiny_config: ConfigDict, tmp_path: Path, damage: str
) -> None:
    workdir = tmp_path / "run"
    train(tiny_config, workdir)
    last = max(checkpoints_lib.steps(workdir))
    folder = workdir / "checkpoints" / str(last)
    if damage == "no manifest":
        (folder / "sha256.json").unlink()
        for which in ("latest", "best"):  # no other is used without a word
            with pytest.raises(UserError, match=r"42 cannot be used \(sha256.json is missing\)"):
                load_run(workdir, checkpoint=which)
    elif damage == "renamed":
        last = 100
        folder.rename(folder.with_name("100"))
        with pytest.raises(UserError, match="written after step 42, and renamed"):
            load_run(workdir)
    elif damage == "metadata":
        (folder / "metadata" / "metadata").write_text("{}")
        with pytest.raises(UserError, match="do not match their checksums"):
            load_run(workdir)
    elif damage == "empty folder":
        last += 1
        (workdir / "checkpoints" / str(last)).mkdir()
    else:
        flip_a_bit(folder / "params")
        with pytest.raises(UserError, match="do not match their checksums"):
            load_run(workdir, checkpoint="latest")
    with pytest.warns(UserWarning, match=f"{last} is damaged"):
        resumed = train(tiny_config, workdir)
    aside = [folder.name.split("-")[0] for folder in (workdir / "damaged_checkpoints").iterdir()]
    assert aside == [str(last)]
    assert_bitwise_equal(resumed, train(tiny_config, tmp_path / "undisturbed"))


def test_run_without_an_intact_checkpoint_is_not_begun_anew(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    train(tiny_config, tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_text()
    for step in checkpoints_lib.steps(tmp_path):
        flip_a_bit(tmp_path / "checkpoints" / str(step))
    with pytest.raises(UserError, match="damaged; "), pytest.warns(UserWarning, match="damaged"):
        train(tiny_config, tmp_path)
    with pytest.raises(UserError, match="damaged; "):  # nor by a second try
        train(tiny_config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == metrics


def test_parameters_that_are_not_finite_are_not_saved(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """The loss is that before the update, so it may still be finite."""
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "sgd", 1e38
    tiny_config.train.checkpoint_every_steps = 1
    with pytest.raises(TrainingError, match="parameters after step 1 are not finite"):
        train(tiny_config, tmp_path)
    assert checkpoints_lib.steps(tmp_path) == []


def test_failed_save_is_one_error_and_leaves_the_rest(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at once nor in the background may it end in another error than ours."""

    def full(self) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_sign", full)
    with pytest.raises(TrainingError, match="No space left"):
        train(tiny_config, tmp_path / "background")
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints_lib.ocp.AsyncCheckpointer, "save", lambda *_, **__: full(None))
    with pytest.raises(TrainingError, match="No space left"):
        train(tiny_config, tmp_path / "at_once")
    assert checkpoints_lib.steps(tmp_path / "background") == []


def test_what_is_evaluated_is_saved(tiny_config: ConfigDict, tmp_path: Path) -> None:
    tiny_config.train.checkpoint_every_steps = 4
    train(tiny_config, tmp_path)
    kept = {step: checkpoints_lib.read_metadata(tmp_path, step) for step in (40, 42)}
    assert kept[40].loss is None
    assert kept[42].loss is not None
    assert load_run(tmp_path).step == 42


def test_a_step_that_is_only_evaluated_is_saved(tiny_config: ConfigDict, tmp_path: Path) -> None:
    tiny_config.train.evaluate_every_steps, tiny_config.train.num_steps = 6, 9
    tiny_config.train.checkpoint_every_steps = 100
    train(tiny_config, tmp_path)
    assert checkpoints_lib.steps(tmp_path) == [6, 9]


def test_files_of_others_among_the_checkpoints_are_left_alone(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    own = [tmp_path / "checkpoints" / name for name in ("21.backup", "050", "٤٢")]
    for folder in own:
        folder.mkdir(parents=True)
    train(tiny_config, tmp_path)
    assert all(folder.is_dir() for folder in own)
    assert checkpoints_lib.steps(tmp_path) == [21, 42]


def test_latest_and_best_checkpoints_are_kept(tiny_config: ConfigDict, tmp_path: Path) -> None:
    state = train(tiny_config, tmp_path / "run")
    metadata = checkpoints_lib.read_metadata(tmp_path / "run", int(state.step))
    with Checkpoints(tmp_path / "kept") as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, float("inf"), None, 4.0]):
            about = replace(metadata, step=step, loss=loss)
            checkpoints.save(*state.to_trees(), metadata=about)
    assert checkpoints_lib.steps(tmp_path / "kept") == [
        1,
        4,
        5,
    ]  # the best, the one before the latest, the latest
    assert load_run(tmp_path / "kept").step == 1
    assert load_run(tmp_path / "kept", checkpoint="latest").step == 5
    assert load_run(tmp_path / "kept", checkpoint="4").step == 4
    assert load_run(tmp_path / "kept", checkpoint=4).step == 4
    with pytest.raises(UserError, match="choose best, latest, or one of the steps 1, 4, 5"):
        load_run(tmp_path / "kept", checkpoint="3")
    assert best_step({}) is None
    assert best_step({1: None, 2: None}) == 2


def test_checkpoint_holds_all_that_using_the_model_needs(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """The text may be gone, and the folder may have moved."""
    text = Path(tiny_config.data.path).read_text()
    own_file = tmp_path / "text.txt"
    own_file.write_text(text)
    tiny_config.data.path = str(own_file)
    state = train(tiny_config, tmp_path / "run")
    own_file.unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    run = load_run(tmp_path / "moved", checkpoint="latest")
    jax.tree.map(np.testing.assert_array_equal, run.params, state.params)
    assert run.vocabulary.characters == "".join(sorted(set(text)))
    assert run.config == tiny_config
    assert run.corpus.num_chars == len(text)
    with pytest.raises(UserError, match="no file found"):
        run.load_dataset()
    own_file.write_text(text + "!")
    with pytest.raises(UserError, match="is now another text"):
        run.load_dataset()


def test_a_workdir_that_another_process_has_is_not_even_looked_at(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """Its half-written checkpoint would look damaged, and would be moved under that process."""
    train(tiny_config, tmp_path)
    half_written = tmp_path / "checkpoints" / "42" / "sha256.json"
    half_written.write_text("{")
    with locked(tmp_path, doing="training"):
        with pytest.raises(BusyError, match="another process is training"):
            train(tiny_config, tmp_path)
        assert isinstance(train_replicas([tiny_config], [tmp_path])[0], BusyError)
    assert half_written.read_text() == "{"
    assert not (tmp_path / "damaged_checkpoints").exists()
    with pytest.warns(UserWarning, match="42 is damaged"):
        train(tiny_config, tmp_path)


def test_parameters_that_are_not_finite_are_not_used(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of a file that was edited, and signed again."""
    state = train(tiny_config, tmp_path / "run")
    metadata = checkpoints_lib.read_metadata(tmp_path / "run", 42)
    params, rest = state.to_trees()
    params = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), params)
    monkeypatch.setattr(checkpoints_lib.math, "isfinite", lambda _: True)
    with Checkpoints(tmp_path / "edited") as checkpoints:
        checkpoints.save(params, rest, metadata=metadata)
    monkeypatch.undo()
    with pytest.raises(UserError, match="dense/bias are not finite"):
        load_run(tmp_path / "edited")
    tiny_config.train.num_epochs = 3
    with pytest.raises(UserError, match="are not finite"):
        train(tiny_config, tmp_path / "edited")


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the error is made here."""
    train(tiny_config, tmp_path)

    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(Path, "read_text", denied)
    for use in (load_run, checkpoints_lib.set_aside_damaged):
        with pytest.raises(UserError, match=r"cannot read .* \(Permission denied\): change"):
            use(tmp_path)
    assert not (tmp_path / "damaged_checkpoints").exists()


@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_reader_beside_training_opens_another_checkpoint_if_its_own_is_deleted(
    tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Deleted after it was chosen, before its parameters were read."""
    train(tiny_config, tmp_path)
    read_metadata, deleted = run_lib.read_metadata, []

    def read(workdir: Path, step: int) -> CheckpointMetadata:
        metadata = read_metadata(workdir, step)
        if not deleted:
            deleted.append(step)
            shutil.rmtree(workdir / "checkpoints" / str(step))
        return metadata

    monkeypatch.setattr(run_lib, "read_metadata", read)
    run = load_run(tmp_path, checkpoint=which)
    assert {run.step, *deleted} == {21, 42}
    with pytest.raises(UserError, match=f"no checkpoint '{deleted[0]}': choose best"):
        load_run(tmp_path, checkpoint=str(deleted[0]))
