"""`charrnn export`: a model for places without this code, as a folder or as a web page."""

import argparse
from pathlib import Path
from typing import Any

from charrnn_jax.commands.arguments import checkpoint_flags, open_run, path
from charrnn_jax.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What is written, and where."""
    checkpoint_flags(parser)
    parser.add_argument(
        "--format",
        default="folder",
        choices=("folder", "web"),
        help="programs and weights for jax, or one HTML file; default: folder",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=path,
        required=True,
        help="a new folder, or a file such as model.html",
    )
    parser.add_argument(
        "--dtype", choices=("int8", "float16"), help="of the weights in a web page; default: int8"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Opens the run and writes it anew."""
    output = args.output
    if args.format == "folder" and args.dtype:
        raise UserError("--dtype is of a web page; a folder has the weights as they are")
    if args.format == "web" and output.is_dir():
        raise UserError(f"{output} is a folder: give a file, --output={output / 'model.html'}")
    if args.format == "web" and output.exists() and output.suffix not in (".html", ".htm"):
        raise UserError(f"{output} is there already: give a file, such as --output=model.html")
    run = open_run(args, overrides)
    if args.format == "folder":
        run.export(output)
        print(f"Exported to {output}; its README.md says how it is used")
    else:
        _write_page(output, run, dtype=args.dtype or "int8")
        print(f"Exported to {output}, {output.stat().st_size:,} bytes: open it in a browser")


def _write_page(file: Path, run: Any, *, dtype: str) -> None:
    from charrnn_jax.data.dataset import describe_corpus
    from charrnn_jax.generation.page import write_page

    unit, corpus = run.vocabulary.unit, run.public_corpus()
    losses = {
        f"Loss, {split}, {protocol}": f"{nats:.4f} nats/{unit}"
        for split, by_protocol in run.losses().items()
        for protocol, nats in by_protocol.items()
    }
    started = {"Started from": run.started_from} if run.started_from else {}
    write_page(
        file,
        run.params,
        model=run.model,
        vocabulary=run.vocabulary,
        dtype=dtype,
        title=run.workdir.resolve().name,
        description=(
            f"A recurrent network that has read {corpus['name']} and writes on, {unit} by "
            f"{unit}. It runs in this page; nothing is sent anywhere."
        ),
        facts={"Text": describe_corpus(corpus), **started, "Step": f"{run.step:,}", **losses},
        prompt=run.config.sample.prompt,
    )
