"""The memory of a process: that it keeps what it has freed, and the most that it has used.

A training step on a CPU allocates and frees arrays of many megabytes. By default glibc returns such
memory to the system at once, and the system fills it with zeros, page by page, each time it is
handed out again. That took a third of a training step of a GRU with 512 units in bfloat16, on two
cores of an AMD EPYC (experiments/LOG.md).
"""

import ctypes
import sys

# Parameters of mallopt, from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST, _OLD_LARGEST = 1 << 30, 32 << 20  # bytes of arrays that come from the heap
_SETTINGS = {
    _TRIM_THRESHOLD: 2**31 - 1,  # free bytes at the end of the heap before any are returned
    _TOP_PAD: 256 << 20,  # bytes by which the heap grows; unused ones take no memory
    _ARENA_MAX: 1,  # the heaps of other threads are small, and large arrays do not fit
}


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation; without glibc, does nothing.

    The process keeps the most memory that it has used at any time. Call it before JAX starts its
    threads, which keep the heaps that they have.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        # Before 2.35, glibc refuses a higher threshold, and would keep the lowest from then on.
        if not mallopt(_MMAP_THRESHOLD, _LARGEST) and not mallopt(_MMAP_THRESHOLD, _OLD_LARGEST):
            return
        for parameter, value in _SETTINGS.items():
            mallopt(parameter, value)


def peak_memory() -> int | None:
    """Returns the most memory that was in use at any time so far, in bytes; None: not known.

    It is that of the accelerator that has used most, or of this process if there is none.
    """
    import jax

    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
        return max(peaks) or None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
