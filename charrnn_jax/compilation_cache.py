"""Keeps compiled programs on disk, so that a command that has run before does not compile again.

For the command line only: a library must not change JAX's settings for its users.
"""

import hashlib
import platform

import jax

from charrnn_jax.data.corpora import cache_folder
from charrnn_jax.host_devices import read_cpuinfo
from charrnn_jax.messages import PROGRESS


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent cache, unless the user or the environment has already set it."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / machine()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    folder = jax.config.values["jax_compilation_cache_dir"]
    PROGRESS.debug(f"compiled programs are kept in {folder}")


def machine() -> str:
    """Returns a name for this kind of CPU, to keep its programs apart from those of other kinds.

    A program may use instructions that another kind of CPU lacks.
    """
    features = f"{platform.machine()} {platform.processor()}"
    cpuinfo = read_cpuinfo()
    features += cpuinfo.get("flags", "") + cpuinfo.get("Features", "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
