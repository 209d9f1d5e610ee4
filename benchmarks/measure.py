"""Measures one peer on one workload: `python -m benchmarks.measure REQUEST`.

Request and result are JSON. Each measurement has its own process, so that no library disturbs
another's threads or memory.
"""

import importlib
import json
import os
import resource
import sys
import time
from importlib import metadata

MOST_RUNS = 1000
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "tensorflow", "keras")


def main(request: dict) -> dict:
    """Returns the measurements.

    Args:
      request: "workload" (the fields of a `Workload`), "peer" (a name), "seconds" (how long to
        measure) and "min_runs" (the fewest runs).
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if request["peer"] in ("tensorflow", "keras_jax"):
        os.environ["KERAS_BACKEND"] = "jax" if request["peer"] == "keras_jax" else "tensorflow"
    from benchmarks import peers
    from benchmarks.workloads import Workload

    workload = Workload(**request["workload"])
    if request["peer"] == "floor":
        from benchmarks.floor import floor_seconds

        return {"seconds": [floor_seconds(workload)]}
    peer = peers.PEERS[request["peer"]]
    for module in peer.modules:
        importlib.import_module(module)
    before = resident_bytes()
    program = peer.make(workload)
    start = time.perf_counter()
    program.run()
    first, first_at = time.perf_counter() - start, time.time()
    seconds: list[float] = []
    if workload.kind != "start":
        program.run()  # a second run to warm up
        per_run = 16 if request["peer"] == "fused_16" else 1
        end = time.perf_counter() + request["seconds"]
        while len(seconds) < request["min_runs"] or (
            time.perf_counter() < end and len(seconds) < MOST_RUNS
        ):
            start = time.perf_counter()
            program.run()
            seconds.append((time.perf_counter() - start) / per_run)
    return {
        "seconds": seconds,
        "first_seconds": first,
        "first_at": first_at,
        "peak_bytes": peak_bytes(),
        "resident_bytes_before": before,
        "device_peak_bytes": device_peak_bytes(),
        "num_params": program.num_params,
        "note": program.note,
        "versions": versions(),
    }


def resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:  # not on Linux
        return 0


def peak_bytes() -> int:
    """Returns the most memory that this process has used, including its imports, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_peak_bytes() -> int | None:
    """Returns the peak memory of the accelerator, as the library that used it reports it."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if "jax" in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats()
        return stats.get("peak_bytes_in_use") if stats else None
    return None


def versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
