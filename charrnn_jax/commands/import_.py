"""`charrnn import`: turns a model trained with PyTorch or Keras into a run."""

import argparse

from charrnn_jax.commands.arguments import path, reject
from charrnn_jax.messages import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the files to read and of the new run."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=path,
        required=True,
        help=".safetensors file of a PyTorch state dict, or .npz of Keras's model.get_weights()",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        type=path,
        required=True,
        help="JSON list of the characters, in the order of the model's ids",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", type=path, required=True, help="folder of the new run"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Reads both files and writes the run."""
    reject(overrides)
    from charrnn_jax.workdir.import_run import import_run

    run = import_run(args.weights, args.vocabulary, workdir=args.workdir)
    model = run.model
    show(
        f"Imported {model.num_layers} x {model.hidden_size} {model.cell.upper()}, "
        f"{run.vocabulary.size - 1} characters; the run is in {run.workdir}"
    )
