"""`charrnn train`: trains a model, or goes on with a run."""

import argparse
import shlex

from charrnn_jax.commands.arguments import load_config, run_flags

add_flags = run_flags


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains, and says what can be done next."""
    config, workdir = load_config(args, overrides)
    from charrnn_jax.compilation_cache import keep_compiled_programs
    from charrnn_jax.training.loop import train

    keep_compiled_programs()
    train(config, workdir)
    print(
        f"Trained; the run is in {workdir}. Next:\n"
        f"  python -m charrnn_jax.main sample --workdir={shlex.quote(str(workdir))}\n"
        f"  python -m charrnn_jax.main evaluate --workdir={shlex.quote(str(workdir))}"
    )
