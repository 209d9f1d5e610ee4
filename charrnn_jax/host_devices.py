"""Makes each CPU core a device, so that cores can share a batch as accelerators do.

For the command line only: a library must not change JAX's settings for its users. Programs of one
device still use all cores, as without this.
"""

import contextlib
import os

import jax


def make_cores_devices() -> None:
    """Makes a device of each core that this process may use, unless the user has set a number.

    It is also left as it is if JAX is already in use.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    is_set = jax.config.values["jax_num_cpu_devices"] != -1
    if is_set or "xla_force_host_platform_device_count" in flags:
        return
    with contextlib.suppress(RuntimeError):  # JAX is in use
        jax.config.update("jax_num_cpu_devices", num_cores())


def num_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
