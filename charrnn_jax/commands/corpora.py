"""`charrnn corpora`: lists the known corpora and where each one is."""

import argparse

from charrnn_jax.commands.arguments import reject
from charrnn_jax.messages import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the command has no flags."""


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Prints the list."""
    reject(overrides)
    from charrnn_jax.data.corpora import (
        BUILT_IN,
        KNOWN_CORPORA,
        SOURCE_CHARS,
        STDLIB_CHARS,
        cached_file,
        data_folder,
    )
    from charrnn_jax.data.sources import SOURCES, usage
    from charrnn_jax.data.tokens import CACHE_BYTES, token_files, token_folder

    show(f"Folder of the corpora: {data_folder()} (set CHARRNN_DATA_DIR to change it)")
    for name, known in KNOWN_CORPORA.items():
        where = cached_file(name) or f"to be downloaded from {known.url}"
        show(f"  {name:14}{known.size:>12,} bytes  {where}\n{'':16}{known.licence}")
    show(
        f"  {BUILT_IN:14}{STDLIB_CHARS:>12,} chars  built in\n"
        f"{'':16}PSF licence; library source of the running Python"
    )
    show(f"  {'source:NAME':14}{SOURCE_CHARS:>12,} chars  generated, with a known entropy rate")
    show(f"{'':16}{', '.join(map(usage, SOURCES.values()))}; then :seed=N")
    sizes = [file.stat().st_size for file in token_files()]
    show(
        f"Tokens of large texts: {len(sizes)} files, {sum(sizes) / 2**30:.1f} GiB of at most "
        f"{CACHE_BYTES / 2**30:.0f}, in {token_folder()} (may be deleted)"
    )
