"""`charrnn export`: a model as a folder or as a web page, for places without this code."""

import argparse
from pathlib import Path

from charrnn_jax.commands.arguments import checkpoint_flags, open_run


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What is written, and where."""
    checkpoint_flags(parser)
    parser.add_argument("--output", metavar="DIR", required=True, help="a new folder")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Opens the run and writes it anew."""
    run = open_run(args, overrides)
    output = Path(args.output).expanduser()
    run.export(output)
    print(f"Exported to {output}; its README.md says how it is used")
