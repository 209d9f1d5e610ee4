"""General-purpose compressors as models: how many bytes a text adds to the text before it.

A compressor that has read the training text spends fewer bytes on the text that follows, as a model
that has learned from it. This module knows bytes, but not where they come from.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

PPMD_ORDER, PPMD_MEMORY = 6, 256 << 20  # characters of context; bytes


def compressed_sizes(text: bytes, *, before: bytes = b"") -> dict[str, int]:
    """Returns how many bytes each compressor spends on a text.

      size(before + text) - size(before)

    Each is set to its strongest level. What it can use of `before` depends on how far back it
    looks: 32 KiB (gzip), a block of 900 kB (bzip2), 64 MiB (xz), 8 MiB (zstd), 256 MiB of
    statistics (PPMd).

    Args:
      text: the text.
      before: the text before it, which is not counted.

    Returns:
      Name of the compressor -> bytes. zstd and PPMd are among them if the packages `zstandard` and
      `pyppmd` are installed.
    """
    return {
        name: len(compress(before + text)) - (len(compress(before)) if before else 0)
        for name, compress in available_compressors().items()
    }


def available_compressors() -> dict[str, Callable[[bytes], bytes]]:
    """Returns the compressors of the standard library, and of packages that are installed."""
    compressors: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda text: zlib.compress(text, 9, wbits=31),
        "bzip2": lambda text: bz2.compress(text, 9),
        "xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    }
    if zstandard := _installed("zstandard"):
        compressors["zstd"] = zstandard.ZstdCompressor(level=19).compress
    if pyppmd := _installed("pyppmd"):
        settings = {"max_order": PPMD_ORDER, "mem_size": PPMD_MEMORY}
        compressors[f"ppmd-{PPMD_ORDER}"] = lambda text: pyppmd.compress(text, **settings)
    return compressors


def _installed(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None
