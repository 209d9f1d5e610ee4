"""A worker: trains work units in this process and records how each one ended."""

import os
import time
import traceback
from collections.abc import Sequence

from charrnn_jax.errors import BusyError, DivergedError, Interrupted, TrainingError, UserError
from charrnn_jax.files import lock
from charrnn_jax.messages import show
from charrnn_jax.sweeps.units import WorkUnit
from charrnn_jax.training.loop import train
from charrnn_jax.training.replicas import program_key, train_replicas

_PATIENCE_SECONDS = 120


def run_units(units: Sequence[WorkUnit]) -> bool:
    """Trains the units that are not done; one that fails does not stop the others.

    Units that can be replicas of one another are trained as one program.

    Returns:
      Whether all are done.

    Raises:
      Interrupted: a signal arrived; the running units were saved.
    """
    groups: dict[str, list[WorkUnit]] = {}
    for unit in units:
        if not unit.is_done():
            # Replicas share one device, so a run on several devices is trained alone.
            alone = max(unit.config.train.data_devices, unit.config.train.model_devices) > 1
            key = unit.name if alone else program_key(unit.config)
            groups.setdefault(key, []).append(unit)
    for group in groups.values():
        _run_group(group)
    return all(unit.is_done() for unit in units)


def _run_group(units: Sequence[WorkUnit]) -> None:
    for unit in units:
        unit.write_status("running")
    errors: Sequence[Exception | None]
    try:
        for unit in units:
            _wait_for(unit)
        if len(units) == 1:
            train(units[0].config, units[0].workdir)
            errors = [None]
        else:
            errors = train_replicas(
                [unit.config for unit in units], [unit.workdir for unit in units]
            )
    except Interrupted:
        for unit in units:
            unit.write_status("waiting")
        raise
    except Exception as error:
        errors = [error] * len(units)
    for unit, failure in zip(units, errors, strict=True):
        if failure:
            write_failure(unit, failure)
        else:
            unit.write_status("done")


def _wait_for(unit: WorkUnit) -> None:
    """Waits while a worker left over from a killed launcher saves and ends."""
    unit.workdir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            os.close(lock(unit.workdir, doing="training"))
            return
        except BusyError:
            if time.monotonic() > deadline:
                return  # training then reports that the folder is locked
            time.sleep(0.2)


def write_failure(unit: WorkUnit, error: Exception) -> None:
    """Records why a unit ended early; the log also gets the traceback of unexpected errors."""
    if not isinstance(error, UserError | TrainingError):
        traceback.print_exception(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    show(f"{unit.name} failed: {message}", flush=True)
    status = "diverged" if isinstance(error, DivergedError) else "failed"
    unit.write_status(status, message=message)
