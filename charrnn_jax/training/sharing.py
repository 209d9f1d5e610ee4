"""How many CPU cores share the batch of a run, each as a device of its own.

The products of a small model may be too small for several cores: then devices that have a part of
the batch each train it faster than one device with all cores. But every device reads all weights,
which costs a large model more than it gains. So both are measured once for each kind of machine and
model. Results differ by rounding, so a run that is resumed keeps its number of devices.
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from charrnn_jax.compilation_cache import machine
from charrnn_jax.host_devices import num_cores
from charrnn_jax.training.devices import make_mesh, place_rows, place_state, state_shardings
from charrnn_jax.training.dispatch import (
    RunSteps,
    calls,
    count_step_flops,
    make_run_steps,
    put_on_device,
)
from charrnn_jax.training.measured import Call, choose
from charrnn_jax.training.setup import Setup
from charrnn_jax.training.train_step import TrainStep, apply_if_finite

_CLEARLY = 0.95  # of the time with one device
_FEWEST_ROWS = 8  # of a batch on a device: products with fewer rows are slow
# A shorter run never measures: this is about a minute's work, at 50 GFLOP/s a core.
_LEAST_FLOPS = 3e12  # of a run, for each core
_LEAST_SECONDS = 60.0  # of a run with a time limit


def compile_for(setup: Setup, train_step: TrainStep, *, sequence_length: int) -> RunSteps:
    """Returns the program that runs the steps of a run on its mesh.

    Args:
      setup: what the run starts from.
      train_step: train step of the run.
      sequence_length: T, in characters.
    """
    return make_run_steps(
        apply_if_finite(train_step),
        sequence_length=sequence_length,
        num_steps=setup.steps_per_call,
        shardings=state_shardings(setup.state, setup.mesh),
    )


def share_among_cores(
    setup: Setup, train_step: TrainStep, *arguments: Any
) -> tuple[Setup, RunSteps]:
    """Chooses how many devices share the batch, if the run is a long one on a CPU.

    Args:
      setup: what the run starts from.
      train_step: train step of the run.
      *arguments: further arguments of the program, see `make_run_steps`.

    Returns:
      (what the run starts from, on these devices; the program of its steps).
    """
    setups = {"1 device": setup}
    if (num_devices := _most_devices(setup)) > 1:
        setups[f"{num_devices} devices"] = _on_devices(setup, num_devices)
    length = setup.config.data.sequence_length
    programs = {
        name: compile_for(each, train_step, sequence_length=length) for name, each in setups.items()
    }
    if len(setups) == 1:
        return setup, programs["1 device"]
    config, num_steps = setup.config, setup.steps_per_call
    key = (
        f"{machine()}, {num_cores()} cores, jax {jax.__version__}, {setup.state.model}, "
        f"{config.data.batch_size} x {length}, {num_steps}, "
        f"{config.optimizer.name}, {config.train.loss}, {config.train.step}, "
        f"{setup.state.open_loop}, {', '.join(setups)}"
    )
    chosen = choose(
        "devices",
        key,
        {name: _call(setups[name], programs[name], arguments) for name in setups},
        clearly=_CLEARLY,
        what="a training step" if num_steps == 1 else f"{num_steps} training steps",
    )
    return setups[chosen], programs[chosen]


def _most_devices(setup: Setup) -> int:
    """Returns the most devices that may share the batch; 1: there is nothing to choose."""
    config, there = setup.config, jax.local_device_count()
    if jax.default_backend() != "cpu" or jax.process_count() > 1 or setup.resumes:
        return 1
    if config.train.data_devices or config.train.model_devices > 1:
        return 1
    batch_size, length = config.data.batch_size, config.data.sequence_length
    step = count_step_flops(setup.state.model, batch_size=batch_size, sequence_length=length)
    is_short = setup.num_steps * step < _LEAST_FLOPS * num_cores()
    if is_short or 0 < config.train.max_seconds < _LEAST_SECONDS:
        return 1
    most = min(there, batch_size // _FEWEST_ROWS)
    return max((n for n in range(1, most + 1) if batch_size % n == 0), default=1)


def _on_devices(setup: Setup, num_devices: int) -> Setup:
    config = setup.config
    mesh = make_mesh(
        data_devices=num_devices,
        model_devices=1,
        batch_size=config.data.batch_size,
        hidden_size=config.model.hidden_size,
    )
    return replace(setup, mesh=mesh, state=place_state(setup.state, mesh))


def _call(setup: Setup, program: RunSteps, arguments: tuple[Any, ...]) -> Call:
    """Returns a full call of a program, on the last batch, whose sequences are not cut short."""
    tokens = put_on_device(setup.dataset.splits["train"], setup.mesh)
    num_steps = setup.steps_per_call
    queue = calls(
        setup.batches,
        start=setup.num_steps - 1,
        stop=setup.num_steps,
        num_steps=num_steps,
        next_stop=lambda step: step + 1,
        on_device=tokens is not None,
    )
    where = place_rows(next(queue).where, setup.mesh)
    return program, (setup.state, tokens, where, np.int32(num_steps), *arguments)
