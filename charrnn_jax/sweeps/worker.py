"""A worker: trains work units in this process, and writes down how each one ended."""

import traceback
from collections.abc import Sequence

from charrnn_jax.errors import DivergedError, Interrupted, TrainingError, UserError
from charrnn_jax.sweeps.units import WorkUnit
from charrnn_jax.training.loop import train


def run_units(units: Sequence[WorkUnit]) -> bool:
    """Trains the units that are not done; one that fails does not stop the others.

    Returns:
      Whether all are done.

    Raises:
      Interrupted: a signal came; what was running is saved.
    """
    for unit in units:
        if not unit.is_done():
            run_unit(unit)
    return all(unit.is_done() for unit in units)


def run_unit(unit: WorkUnit) -> None:
    """Trains one unit."""
    unit.write_status("running")
    try:
        train(unit.config, unit.workdir)
        unit.write_status("done")
    except Interrupted:
        unit.write_status("waiting")
        raise
    except Exception as error:
        write_failure(unit, error)


def write_failure(unit: WorkUnit, error: Exception) -> None:
    """Writes down why a unit ended early; the log gets the traceback of what nobody expected."""
    if not isinstance(error, UserError | TrainingError):
        traceback.print_exception(error)
    message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    print(f"{unit.name} failed: {message}", flush=True)
    status = "diverged" if isinstance(error, DivergedError) else "failed"
    unit.write_status(status, message=message)
