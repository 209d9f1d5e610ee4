"""A campaign against the program: python -m tests.faults --minutes=60

Kills, stops and fuzzes real commands for as long as wanted, and prints what was found.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", action="append", choices=[*kills.SCENARIOS])
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    totals = {"rounds": 0, "kills": 0}
    problems: list[str] = []
    seed = args.seed
    names = args.scenario or [*kills.SCENARIOS]
    with tempfile.TemporaryDirectory(prefix="charrnn-faults-") as folder:
        while time.monotonic() < deadline:
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
                found = kills.campaign(
                    Path(folder) / str(seed),
                    rounds={name: 4 if name == "train" else 1 for name in names},
                    number=number,
                    seed=seed,
                    report=lambda line: print(line, flush=True),
                )
                for name in totals:
                    totals[name] += found[name]
                problems += found["problems"]
            seed += 1
    print(f"{totals['rounds']} rounds, {totals['kills']} signals, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
