"""`charrnn export`: exports a model that works without this package, as a folder or a web page."""

import argparse

from charrnn_jax.commands.arguments import checkpoint_flags, open_run, path
from charrnn_jax.errors import UserError
from charrnn_jax.messages import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the checkpoint and of the output."""
    checkpoint_flags(parser)
    parser.add_argument(
        "--format",
        default="folder",
        choices=("folder", "web"),
        help="folder: programs and weights for jax; web: one HTML file; default: folder",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=path,
        required=True,
        help="new folder, or HTML file such as model.html",
    )
    parser.add_argument(
        "--dtype",
        choices=("int8", "float16"),
        help="number type of the weights in a web page; default: int8",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Opens the run and exports its model."""
    output = args.output
    if args.format == "folder" and args.dtype:
        raise UserError("--dtype needs --format=web: a folder has the weights in full precision")
    if args.format == "web" and output.is_dir():
        raise UserError(f"{output} is a folder: give a file, --output={output / 'model.html'}")
    if args.format == "web" and output.exists() and output.suffix not in (".html", ".htm"):
        raise UserError(f"{output} exists, and is not HTML: give a file such as model.html")
    trained = open_run(args, overrides)
    if args.format == "folder":
        from charrnn_jax.export.folder import export

        export(trained, output)
        show(f"Exported to {output}; its README.md explains how to use it")
    else:
        from charrnn_jax.export.page import export_page

        export_page(trained, output, dtype=args.dtype or "int8")
        show(f"Exported to {output}, {output.stat().st_size:,} bytes: open it in a browser")
