"""Compiled programs are kept on disk, so that a command that ran before starts at once.

For the command line; a library must not change JAX's settings for its users.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

from charrnn_jax.data.corpora import cache_folder


def keep_compiled_programs() -> None:
    """Turns JAX's persistent cache on, unless the user or the environment has set it already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / _machine()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _machine() -> str:
    """A program for a CPU may use instructions that another CPU lacks: each kind has its folder."""
    features = f"{platform.machine()} {platform.processor()}"
    cpuinfo = Path("/proc/cpuinfo")
    if os.access(cpuinfo, os.R_OK):
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
