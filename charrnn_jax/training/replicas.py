"""Runs that differ only in numbers, trained together as one compiled program.

The states of R runs get a leading replica axis, and so do their hyperparameters and the positions
of their batches in the text. One program runs the steps of all of them. Everything between steps
(rows, evaluation, samples, checkpoints) is done for each run separately, by the same code and in
the same files as when it is trained alone, so each run can be opened or resumed alone.

A program runs the replicas one after another (`map`, `lax.map`) or all at once (`vmap`). On a CPU,
`map` gives each run the same bits as when it is trained alone. `vmap` batches the matrix products,
and the results are equal up to rounding. Batched products of small matrices are slow on a CPU
(twice as slow for a GRU with 128 units, see experiments/LOG.md), so `map` is always used there, and
the results do not depend on how busy the machine is. A single small model does not keep an
accelerator busy. There, both are measured once for each kind of device and model, and `vmap` is
used where it is clearly faster.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.config import flatten, to_json, validate
from charrnn_jax.data.batches import prefetch
from charrnn_jax.data.dataset import Dataset
from charrnn_jax.errors import DivergedError, Interrupted, TrainingError, UserError
from charrnn_jax.host_devices import num_cores
from charrnn_jax.messages import PROGRESS
from charrnn_jax.models.cells import CELLS
from charrnn_jax.registry import OPTIMIZERS, TRAIN_STEPS
from charrnn_jax.training.averaging import average_weights
from charrnn_jax.training.dispatch import Call, make_run_steps, put_on_device
from charrnn_jax.training.in_progress import Training, start_training
from charrnn_jax.training.interrupt import InterruptRequest
from charrnn_jax.training.loop import choose_train_step
from charrnn_jax.training.measured import choose
from charrnn_jax.training.setup import Setup, make_setup
from charrnn_jax.training.train_step import (
    TRACED_FIELDS,
    TracedHyperparameters,
    TrainState,
    apply_if_finite,
)
from charrnn_jax.workdir.checkpoints import steps
from charrnn_jax.workdir.resume import locked_for_training

MAPPINGS: dict[str, Callable[..., Any]] = {
    "map": lambda f: lambda *args: jax.lax.map(lambda replica: f(*replica), args),
    "vmap": jax.vmap,
}
# (state, hyper, tokens, where, count) -> (state, metrics); tokens and count have no replica axis
RunReplicas = Callable[..., tuple[TrainState, dict[str, Any]]]
_MAP_ALONE = ("cpu",)
_CLEARLY = 0.8  # vmap is used below this share of map's time, since it rounds differently
_MEMORY_FRACTION = 0.6  # share of the free memory that a group may take, by estimate


def program_key(config: ConfigDict) -> str:
    """Returns what runs must have in common to be replicas: all but the values of traced numbers.

    A registered train step does not take traced numbers, a registered optimizer or regulariser may
    read them from the config, and a run with a time limit must not wait for others, so such runs
    must have everything in common.
    """
    key = config.copy_and_resolve_references()
    if config.train.max_seconds or config.train.regularisers:
        return to_json(key)
    if config.train.step in TRAIN_STEPS.sources or config.optimizer.name in OPTIMIZERS.sources:
        return to_json(key)
    fields = flatten(config)
    for name, traced in TRACED_FIELDS.items():
        value = fields[name]
        if not traced.zero_is_another_program or value > 0:
            value = type(value)(traced.zero_is_another_program)
        key.update_from_flattened_dict({name: value})
    return to_json(key)


def train_replicas(
    configs: Sequence[ConfigDict], workdirs: Sequence[str | Path], *, mapping: str = "auto"
) -> list[Exception | None]:
    """Trains runs with the same `program_key` together, or resumes from their last common step.

    Args:
      configs: configs of the runs.
      workdirs: workdirs of the runs, in the same order.
      mapping: "map", "vmap" or "auto": map on a CPU, otherwise the faster one that fits the memory.

    Returns:
      For each run None, or the error that ended it while the others continued.

    Raises:
      UserError: the configs differ in more than the numbers that replicas may differ in.
      Interrupted: there was a signal; the states are saved.
    """
    if any(config.train.max_seconds for config in configs):
        raise UserError(
            "config.train.max_seconds is set: a run with a time limit must be trained alone"
        )
    if len({program_key(config) for config in configs}) > 1:
        raise UserError(f"replicas may differ only in {', '.join(TRACED_FIELDS)}")
    if configs and configs[0].train.step in TRAIN_STEPS.sources:
        raise UserError(
            f"config.train.step is {configs[0].train.step!r}: a run with a registered train step "
            "must be trained alone"
        )
    folders = [Path(workdir) for workdir in workdirs]
    ended: list[Exception | None] = [None] * len(configs)
    with ExitStack() as stack:
        for index, folder in enumerate(folders):
            with _keeping_errors(ended, index):
                validate(configs[index])
                text = configs[index].data.path
                stack.enter_context(locked_for_training(folder, text=text))
        intact = [index for index in range(len(configs)) if not ended[index]]
        dataset = None
        for start, members in _by_common_step([folders[index] for index in intact]):
            waiting = [intact[member] for member in members]
            while waiting:  # as many at once as fit in memory
                setups = _set_up(waiting, configs, folders, ended, dataset, mapping=mapping)
                if setups:
                    dataset = next(iter(setups.values())).dataset
                    _train_group(setups, ended, start=start, mapping=mapping)
    return ended


def _set_up(
    waiting: list[int],
    configs: Sequence[ConfigDict],
    folders: Sequence[Path],
    ended: list[Exception | None],
    dataset: Dataset | None,
    *,
    mapping: str,
) -> dict[int, Setup]:
    """Sets up the next runs that fit in memory together, and removes them from `waiting`."""
    setups: dict[int, Setup] = {}
    while waiting:
        index = waiting.pop(0)
        with _keeping_errors(ended, index):
            folder = folders[index]
            setup = make_setup(configs[index], folder, dataset=dataset, label=folder.name, cores=1)
            if dataset is None:
                PROGRESS.info(setup.dataset.describe())
            elif setup.dataset.identity() != dataset.identity():
                raise UserError(
                    f"{folder} was started with another text than the others: train it alone"
                )
            setups[index], dataset = setup, setup.dataset
            if len(setups) >= _most_replicas(setup)["map" if mapping == "auto" else mapping]:
                break
    return setups


@contextlib.contextmanager
def _keeping_errors(ended: list[Exception | None], index: int) -> Iterator[None]:
    """Stores an error of one run, so that it does not stop the others."""
    try:
        yield
    except (UserError, TrainingError) as error:
        ended[index] = error


def _by_common_step(workdirs: Sequence[Path]) -> list[tuple[int, list[int]]]:
    """Groups runs that can be resumed together; returns (latest common step, indices) for each.

    The step is one of the last two saved by each run, since a group that is killed while it saves
    is at most one save apart.
    """
    groups: list[tuple[set[int], list[int]]] = []
    for index, workdir in enumerate(workdirs):
        saved = set(steps(workdir)[-2:]) or {0}
        for common, members in groups:
            if common & saved:
                common &= saved  # in place
                members.append(index)
                break
        else:
            groups.append((saved, [index]))
    return [(max(common), members) for common, members in groups]


def _train_group(
    setups: dict[int, Setup], ended: list[Exception | None], *, start: int, mapping: str
) -> None:
    """Trains a group of runs from step `start`; `ended` gets the errors that end them."""
    first = next(iter(setups.values()))
    with InterruptRequest() as interrupt, ExitStack() as stack:
        group: dict[int, Training] = {}
        opened: dict[int, contextlib.AbstractContextManager[Training]] = {}

        def fail(index: int, error: Exception, message: str) -> None:
            """Ends one run with its error, which its hooks get to see."""
            group[index].progress.say(message)
            ended[index] = error
            with contextlib.suppress(TrainingError, OSError):  # there is an error already
                opened[index].__exit__(type(error), error, error.__traceback__)

        for index, setup in setups.items():
            # Static fields must be the same; numbers that differ go into `hyper`.
            shared = replace(
                setup.state,
                model=first.state.model,
                optimizer=first.state.optimizer,
                open_loop=first.state.open_loop,
            )
            with _keeping_errors(ended, index):
                _, is_standard = choose_train_step(setup.config)
                opened[index] = start_training(
                    replace(setup, state=shared), at=start, checks_initial_loss=is_standard
                )
                training = stack.enter_context(opened[index])
                if training.start < training.stop:
                    group[index] = training
        if not group:
            return
        leader = next(iter(group.values()))
        state = _stack([training.state for training in group.values()])
        hyper = _stack([TracedHyperparameters.from_config(setups[index].config) for index in group])
        tokens = put_on_device(first.dataset.splits["train"])
        queues = [training.calls(on_device=tokens is not None) for training in group.values()]
        queue = map(_join, zip(*queues, strict=True))
        length = 0
        for call, where in prefetch(queue, lambda call: (call, jax.device_put(call.where))):
            count = np.int32(call.num_steps)
            if is_new := call.sequence_length != length:  # they only grow
                length = call.sequence_length
                arguments = (state, hyper, tokens, where, count)
                run_steps = _choose_program(
                    first, arguments, sequence_length=length, mapping=mapping
                )
            state, metrics = run_steps(state, hyper, tokens, where, count)
            due = leader.is_due(call.stop) or interrupt.signal_number is not None
            signal_number = interrupt.signal_number if due else None
            for place, (index, training) in enumerate(group.items()):
                if ended[index] or training.stops_early:
                    continue
                try:
                    training.recorder.add(
                        call.stop, _take(metrics, place), count=call.num_steps, compiles=is_new
                    )
                    if due:
                        # Zoneout acts outside of training, too, where its rate is not in `hyper`.
                        own_rate = setups[index].state.model.zoneout
                        own_state = replace(
                            _take(state, place), model=first.state.model.clone(zoneout=own_rate)
                        )
                        training.call_hooks(own_state, call.stop, signal_number=signal_number)
                except DivergedError as error:
                    fail(index, error, str(error))
                except Interrupted:
                    pass  # the other runs must be saved, too
                except Exception as error:  # from a hook, such as a full disk
                    fail(index, error, f"{type(error).__name__}: {error}")
            if signal_number is not None:
                raise Interrupted(signal_number, call.stop)
            if all(ended[index] or training.stops_early for index, training in group.items()):
                break


def _make_program(setup: Setup, *, sequence_length: int, mapping: str) -> RunReplicas:
    """Returns the program that runs a call of all replicas; the states are donated."""
    step_fn = choose_train_step(setup.config)[0]
    averaged = average_weights(step_fn, config=setup.config.train, num_steps=setup.num_steps)
    train_step: Any = apply_if_finite(averaged)

    def run_steps(
        state: TrainState, hyper: TracedHyperparameters, tokens: Any, where: Any, count: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        def run_one(state: TrainState, hyper: TracedHyperparameters, where: Any) -> Any:
            run = make_run_steps(
                partial(train_step, hyper=hyper),
                sequence_length=sequence_length,
                num_steps=setup.steps_per_call,
            )
            return run(state, tokens, where, count)

        return MAPPINGS[mapping](run_one)(state, hyper, where)

    return jax.jit(run_steps, donate_argnums=0)


def _choose_program(
    setup: Setup, arguments: tuple[Any, ...], *, sequence_length: int, mapping: str
) -> RunReplicas:
    """Returns the program for a mapping; for "auto", the faster one.

    Args:
      setup: setup of any of the replicas.
      arguments: arguments of the first call.
      sequence_length: length of the sequences, in characters.
      mapping: "map", "vmap" or "auto".
    """
    make_program = partial(_make_program, setup, sequence_length=sequence_length)
    if mapping != "auto":
        return make_program(mapping=mapping)
    state, num_steps = arguments[0], setup.steps_per_call
    num_replicas = len(state.step)
    if jax.default_backend() in _MAP_ALONE or num_replicas > _most_replicas(setup)["vmap"]:
        return make_program(mapping="map")
    key = (
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {num_replicas} x {state.model}, "
        f"{setup.config.data.batch_size} x {sequence_length}, {setup.steps_per_call}"
    )
    programs = {name: make_program(mapping=name) for name in MAPPINGS}
    arguments = (*arguments[:-1], np.int32(num_steps))  # a full call
    chosen = choose(
        "replicas",
        key,
        {name: (program, arguments) for name, program in programs.items()},
        clearly=_CLEARLY,
        what=f"{num_steps} steps of {num_replicas} replicas",
    )
    return programs[chosen]


def _most_replicas(setup: Setup) -> dict[str, int]:
    """Returns how many replicas fit in memory with each mapping, at least one.

    A state counts twice, for the gradient and the new arrays. In addition there are the activations
    that a step keeps: of all replicas with "vmap", of one with "map".
    """
    data, model = setup.config.data, setup.state.model
    arrays = setup.state.params, setup.state.opt_state, setup.state.average
    state = 2 * sum(x.nbytes for x in jax.tree.leaves(arrays))
    kept = model.embedding_size + 3 * model.vocabulary_size
    weights = max(CELLS[model.cell].count_weights(model.hidden_size, model.hidden_size))
    num_gates = -(-weights // model.hidden_size**2)
    kept += model.num_layers * model.hidden_size * (2 + 2 * num_gates)
    activations = 4 * data.batch_size * data.sequence_length * kept
    room = _MEMORY_FRACTION * _memory_bytes()
    return {
        "map": max(1, int((room - activations) / state)),
        "vmap": max(1, int(room / (state + activations))),
    }


def _memory_bytes() -> float:
    """Returns the free bytes of the first device; of a CPU, a share by the cores it may use."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    share = num_cores() / (os.cpu_count() or 1)
    return share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _take(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _join(calls: Sequence[Call]) -> Call:
    """Returns the same call of all replicas as one call."""
    return calls[0]._replace(
        where=jax.tree.map(lambda *leaves: np.stack(leaves), *(call.where for call in calls))
    )
