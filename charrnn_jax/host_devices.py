"""The processor of this machine, and its cores as devices.

`make_cores_devices` makes each core a device, so that cores can share a batch as accelerators do.

For the command line only: a library must not change JAX's settings for its users. Programs of one
device still use all cores, as without this.
"""

import contextlib
import os
import platform
from pathlib import Path

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


def read_cpuinfo() -> dict[str, str]:
    """Returns the fields of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on Linux, or not allowed
        return {}
    lines = text.partition("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def describe_processor() -> str:
    """Returns the name of the processor, such as "AMD EPYC 9654 96-Core Processor"."""
    return read_cpuinfo().get("model name") or platform.processor() or platform.machine()
