"""Freed memory is used again."""

import subprocess
import sys

import pytest

ARRAYS = """
import resource, sys
import numpy as np
from charrnn_jax.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(8 << 20, np.uint8)
before = faults()
for _ in range(20):
    np.ones(8 << 20, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is for glibc")
def test_arrays_of_kept_memory_cost_no_page_faults() -> None:
    # A threshold of its own, since glibc raises it when the first of the arrays is freed.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": "0"}
    freed, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", ARRAYS, what],
                env=environment,
                check=True,
                capture_output=True,
            ).stdout
        )
        for what in ("free", "keep")
    )
    assert freed > 20 > kept
