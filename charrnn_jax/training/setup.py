"""`Setup`: everything that a run starts from, made from a config and a workdir.

Errors in either are reported here, before anything is written.
"""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from charrnn_jax.config import from_dict
from charrnn_jax.data.batches import Batches, Stage, make_batches, make_stages
from charrnn_jax.data.dataset import Dataset, load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.generation.choice import make_rules
from charrnn_jax.generation.prompts import encode_prompt
from charrnn_jax.models.char_rnn import make_model
from charrnn_jax.models.products import can_train_in_bfloat16
from charrnn_jax.models.regularisers import make_regularisers
from charrnn_jax.processes import first_then_others, from_first, say_once
from charrnn_jax.registry import HOOKS, RULES, compare_registered
from charrnn_jax.training import tracking  # noqa: F401, which provides hooks
from charrnn_jax.training.averaging import start_average
from charrnn_jax.training.devices import make_mesh, place_state
from charrnn_jax.training.dispatch import choose_steps_per_call
from charrnn_jax.training.open_loop import make_open_loop
from charrnn_jax.training.optimizer import make_optimizer
from charrnn_jax.training.train_step import TrainState, create_train_state
from charrnn_jax.training.warm_start import warm_start
from charrnn_jax.workdir.metadata import CheckpointMetadata, Origin
from charrnn_jax.workdir.resume import check_same_run, find_resumable


@dataclass(frozen=True)
class Setup:
    """What a run starts from.

    Attributes:
      config: config of the run.
      workdir: workdir of the run.
      dataset: text of the run.
      batches: batches of the training split.
      mesh: devices of the run.
      state: state before the first step, placed on the mesh.
      num_steps: number of steps of the whole training.
      steps_per_call: largest number of steps in one call of the device.
      hooks: registered hooks that the config names; see `training.hooks`.
      origin: run whose weights this one starts from; None: it starts from random weights.
      resumes: whether the workdir has a checkpoint of the run.
      label: name of the run, if it is one of several in this process; otherwise "".
      started: when this process began with the run, by `time.perf_counter`.
    """

    config: ConfigDict
    workdir: Path
    dataset: Dataset
    batches: Batches
    mesh: Mesh
    state: TrainState
    num_steps: int
    steps_per_call: int
    hooks: tuple[Any, ...] = ()
    origin: Origin | None = None
    resumes: bool = False
    label: str = ""
    started: float = field(default_factory=time.perf_counter)


def make_setup(
    config: ConfigDict,
    workdir: Path,
    *,
    dataset: Dataset | None = None,
    label: str = "",
    cores: int | None = None,
) -> Setup:
    """Makes what a run starts from. Writes nothing; prints what has changed in a resumed run.

    Args:
      config: config of the run, which must be valid.
      workdir: workdir of the run, locked by `resume.locked_for_training`.
      dataset: text of another run with the same `config.data`, which is then not read again.
      label: name of the run, if it is one of several in this process; otherwise "".
      cores: most CPU cores that share a batch, each as a device, if the config does not say it;
        None: as many as when the run was saved, or for a new run one.

    Raises:
      UserError: the config, text or workdir cannot be used.
    """
    started = time.perf_counter()
    _check_dtype(config.model.dtype)
    saved = _find_saved(config, workdir)
    dataset = _load_dataset(config, saved, dataset)
    size = {
        "batch_size": config.data.batch_size,
        "sequence_length": config.data.sequence_length,
    }
    batches = make_batches(
        dataset.splits["train"],
        batching=config.data.batching,
        seed=config.seed,
        offset=config.data.offset,
        carry_reset_rate=config.data.carry_reset_rate,
        stages=stages_of(config),
        **size,
    )
    _check_names(config, dataset.vocabulary)
    if config.train.patience and not len(dataset.splits["validation"]):
        raise UserError(
            f"config.train.patience is {config.train.patience}, but there is no validation split "
            "to judge by: set --config.data.validation_fraction=0.1, or --config.train.patience=0"
        )
    num_steps = config.train.num_steps or config.train.num_epochs * batches.steps_per_epoch
    mesh = make_mesh(
        data_devices=config.train.data_devices,
        model_devices=config.train.model_devices,
        batch_size=config.data.batch_size,
        hidden_size=config.model.hidden_size,
        cores=cores or (saved and saved.data_devices) or 1,
    )
    if saved and saved.data_devices not in (None, mesh.shape["data"]):
        say_once(
            f"The batch was shared by {saved.data_devices} device(s), and is now by "
            f"{mesh.shape['data']}: from here on, results differ by rounding"
        )
    state = create_train_state(
        make_model(config.model, vocabulary_size=dataset.vocabulary.size),
        make_optimizer(config.optimizer, num_steps=num_steps, hidden_size=config.model.hidden_size),
        seed=config.seed,
        batch_size=config.data.batch_size,
        regularisers=make_regularisers(config),
        open_loop=make_open_loop(config.train, num_steps=num_steps),
    )
    origin = saved.origin if saved else None
    if config.train.init_from and not saved:
        source, vocabulary = config.train.init_from, dataset.vocabulary
        params, origin = warm_start(
            state.params, source, config=config.model, vocabulary=vocabulary
        )
        state = replace(state, params=params)
    if config.train.averaging != "none":
        state = start_average(state)
    return Setup(
        config=config,
        workdir=workdir,
        dataset=dataset,
        batches=batches,
        mesh=mesh,
        state=place_state(state, mesh),
        num_steps=num_steps,
        steps_per_call=config.train.steps_per_call or choose_steps_per_call(state.model, **size),
        hooks=_make_hooks(config, workdir),
        origin=origin,
        resumes=saved is not None,
        label=label,
        started=started,
    )


def stages_of(config: ConfigDict) -> tuple[Stage, ...]:
    """Returns the lengths of the sequences of a run."""
    return make_stages(
        config.data.sequence_length,
        initial_length=config.train.initial_length,
        warmup_steps=config.train.length_warmup_steps,
    )


def _check_dtype(dtype: str) -> None:
    if dtype == "bfloat16" and not can_train_in_bfloat16():
        raise UserError(
            f"jax {jax.__version__} cannot train in bfloat16 on this processor: set "
            "--config.model.dtype=float32, or install a newer jax"
        )


def _find_saved(config: ConfigDict, workdir: Path) -> CheckpointMetadata | None:
    """Returns the metadata of the run to resume, or None; prints what has changed since."""
    saved = from_first(lambda: find_resumable(workdir, config=config))
    if saved:
        compare_registered(saved.registered)
        for change in check_same_run(from_dict(saved.config), config, workdir):
            say_once(f"Changed since the run was saved: {change}")
    return saved


def _load_dataset(
    config: ConfigDict, saved: CheckpointMetadata | None, dataset: Dataset | None
) -> Dataset:
    """Returns the given text if the run can use it; otherwise reads the text of the run."""
    if dataset is not None and (saved is None or saved.corpus == dataset.identity()):
        return dataset
    vocabulary = Vocabulary.from_dict(saved.vocabulary) if saved else None
    recorded = saved.corpus if saved else None
    return first_then_others(
        lambda: load_dataset(config.data, vocabulary=vocabulary, recorded=recorded)
    )


def _check_names(config: ConfigDict, vocabulary: Vocabulary) -> None:
    """Makes what hooks need later, so that errors are raised before training."""
    make_protocol(config.evaluation)
    make_rules(vocabulary, own=RULES.names_in(config.sample.rules))
    try:
        encode_prompt(config.sample.prompt, vocabulary)
    except UserError as error:
        raise UserError(f"set another --config.sample.prompt: {error}") from error


def _make_hooks(config: ConfigDict, workdir: Path) -> tuple[Any, ...]:
    def make(name: str) -> Any:
        make_hook = HOOKS[name]
        takes_workdir = "workdir" in inspect.signature(make_hook).parameters
        return make_hook(config, workdir=workdir) if takes_workdir else make_hook(config)

    hooks = tuple(make(name) for name in HOOKS.names_in(config.train.hooks))
    check_hooks(hooks)
    return hooks


def check_hooks(hooks: Sequence[Any]) -> None:
    """Raises UserError for anything that is not a hook."""
    for hook in hooks:
        every_steps = getattr(hook, "every_steps", None)
        if not (callable(hook) and isinstance(every_steps, int) and every_steps >= 0):
            raise UserError(
                f"{hook!r} is not a hook: it must be callable as hook(step, state, metrics), with "
                "an attribute every_steps of at least 0"
            )
