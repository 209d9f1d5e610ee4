"""`charrnn train`: trains a model, or resumes a run."""

import argparse
import shlex

from charrnn_jax.commands.arguments import job_flags, join_job, load_config, run_flags
from charrnn_jax.messages import PROGRESS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run and of a job of several processes."""
    run_flags(parser)
    job_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains, then prints what to do next."""
    config, workdir = load_config(args, overrides)
    join_job(args)
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.host_devices import make_cores_devices
    from charrnn_jax.processes import is_first_process, one_fails_all_end
    from charrnn_jax.training.loop import train
    from charrnn_jax.workdir.checkpoints import read_metadata, steps

    keep_compiled_programs()
    make_cores_devices()
    with one_fails_all_end():
        train(config, workdir)
    if not is_first_process():
        return
    next_commands = ["sample"]
    if read_metadata(workdir, steps(workdir)[-1]).loss is not None:  # has a validation split
        next_commands.append("evaluate")
    flag = f"--workdir={shlex.quote(str(workdir))}"
    lines = [f"  charrnn {command} {flag}" for command in next_commands]
    PROGRESS.info("\n".join([f"Trained; the run is in {workdir}. Next:", *lines]))
