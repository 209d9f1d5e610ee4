"""`charrnn config`: prints an experiment that comes with the package, to be copied and edited."""

import argparse

from charrnn_jax.commands.arguments import reject
from charrnn_jax.errors import UserError
from charrnn_jax.messages import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the name of the preset."""
    parser.add_argument(
        "name", nargs="?", help="preset to print; without one, the presets are listed"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the source of the preset, or the list."""
    reject(overrides)
    from charrnn_jax.experiment import presets

    known = presets()
    if args.name is None:
        for name, file in known.items():
            show(f"{name:15}{_headline(file.read_text(encoding='utf-8'))}")
    elif args.name in known:
        show(known[args.name].read_text(encoding="utf-8"), end="")
    else:
        raise UserError(f"there is no preset {args.name!r}; the presets are {', '.join(known)}")


def _headline(source: str) -> str:
    """Returns the first line of a file's docstring."""
    return source.removeprefix('"""').partition("\n")[0].rstrip('"')
