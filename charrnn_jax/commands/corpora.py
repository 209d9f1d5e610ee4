"""`charrnn corpora`: lists known corpora, and which are here."""

import argparse

from charrnn_jax.commands.arguments import reject


def add_flags(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Shows the list."""
    reject(overrides)
    from charrnn_jax.data.corpora import (
        BUILT_IN,
        KNOWN_CORPORA,
        STDLIB_CHARS,
        cached_file,
        data_folder,
    )

    print(f"Corpora are looked for in {data_folder()} (set CHARRNN_DATA_DIR to change that)")
    for name, known in KNOWN_CORPORA.items():
        where = cached_file(name) or f"to be downloaded from {known.url}"
        print(f"  {name:14}{known.size:>12,} bytes  {where}\n{'':16}{known.licence}")
    print(
        f"  {BUILT_IN:14}{STDLIB_CHARS:>12,} chars  built in\n"
        f"{'':16}PSF licence; library source of the running Python"
    )
