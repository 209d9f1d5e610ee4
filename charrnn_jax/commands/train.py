"""`charrnn train`: trains a model, or resumes a run."""

import argparse
import shlex

from charrnn_jax.commands.arguments import job_flags, join_job, load_config, run_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run and of a job of several processes."""
    run_flags(parser)
    job_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains, then prints what to do next."""
    config, workdir = load_config(args, overrides)
    join_job(args)
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.processes import one_fails_all_end, say_once
    from charrnn_jax.training.loop import train

    keep_compiled_programs()
    with one_fails_all_end():
        train(config, workdir)
    say_once(
        f"Trained; the run is in {workdir}. Next:\n"
        f"  charrnn sample --workdir={shlex.quote(str(workdir))}\n"
        f"  charrnn evaluate --workdir={shlex.quote(str(workdir))}"
    )
