"""Jobs: which work units run in one process, and the command that runs them.

Units that can be replicas of one another share a process, because they can share one compiled
program. If there are only a few such groups, they are split so that no worker is idle.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charrnn_jax.sweeps.units import WorkUnit
from charrnn_jax.training.replicas import program_key

_ENOUGH_GROUPS = 4  # for each worker


@dataclass(frozen=True)
class Job:
    """Work units that one process runs.

    Attributes:
      units: work units to train, at least one.
      workdir: folder of the sweep.
      experiments: absolute paths of the experiment files that register names used in the units'
        configs, such as cells.
    """

    units: tuple[WorkUnit, ...]
    workdir: Path
    experiments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the job: the index of its first unit."""
        return f"{self.units[0].index:04d}"

    @property
    def log(self) -> Path:
        """The file with the output of its process."""
        return self.workdir / "logs" / f"{self.name}.log"

    def command(self) -> list[str]:
        """Returns the command; it reads only the sweep's folder and the experiment files."""
        indices = ",".join(str(unit.index) for unit in self.units)
        module = [sys.executable, "-m", "charrnn_jax.main"]
        register = [f"--register={file}" for file in self.experiments]
        return [*module, "sweep", f"--workdir={self.workdir}", f"--work_unit={indices}", *register]


def make_jobs(
    units: Sequence[WorkUnit],
    *,
    workdir: Path,
    num_workers: int,
    experiments: tuple[str, ...] = (),
) -> list[Job]:
    """Returns the jobs of all units, largest first.

    Args:
      units: work units to train.
      workdir: folder of the sweep.
      num_workers: number of processes that run at the same time.
      experiments: paths of experiment files; see `Job`.
    """
    groups: dict[str, list[WorkUnit]] = {}
    for unit in units:
        groups.setdefault(program_key(unit.config), []).append(unit)
    # A process takes seconds to start; with several groups for each worker, none is idle for long.
    if len(groups) < num_workers:
        share = math.ceil(num_workers / max(len(groups), 1))
    elif len(groups) < _ENOUGH_GROUPS * num_workers:
        share = num_workers // math.gcd(num_workers, len(groups))
    else:
        share = 1
    jobs = []
    for group in groups.values():
        parts = min(share, len(group))
        jobs += [Job(tuple(group[part::parts]), workdir, experiments) for part in range(parts)]
    return sorted(jobs, key=lambda job: -len(job.units))
