"""A campaign against the program: python -m tests.faults --minutes=60

Kills and stops real commands, resumes them and compares what they leave; gives damaged files to
every reader; and prints what was found. Exit code 1 if anything was.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults import kills
from tests.faults.test_readers import fuzz

# Rounds of each scenario between two times that files are damaged.
ROUNDS = {"train": 8, "sweep": 1, "search": 1, "two processes": 1}
FUZZ_SHARE = 0.2  # of the time


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*kills.SCENARIOS, "files"])
    args = parser.parse_args()
    start, seed = time.monotonic(), args.seed
    counts, problems = Counter[str](), list[str]()

    def is_time() -> bool:
        return time.monotonic() - start < 60 * args.minutes

    with tempfile.TemporaryDirectory(prefix="charrnn-faults-") as folder:
        while is_time():
            seed += 1
            before = time.monotonic()
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
                for name, rounds in ROUNDS.items():
                    if args.only in (None, name) and is_time():
                        found = kills.campaign(
                            Path(folder) / f"{seed}-{name}",
                            rounds={name: rounds},
                            number=number,
                            seed=seed,
                            report=lambda line: print(line, flush=True),
                        )
                        counts[f"{number.name} rounds"] += found["rounds"]
                        counts[f"{number.name} signals"] += found["kills"]
                        problems += found["problems"]
            if args.only in (None, "files"):
                seconds = FUZZ_SHARE * (time.monotonic() - before) or 60 * args.minutes
                read = fuzz(seconds=seconds, seed=seed)
                counts["damaged files"] += sum(n for name, n in read.items() if "," not in name)
    print(*(f"{name}: {count:,}" for name, count in counts.items()), sep="\n")
    print(f"{len(problems)} problems", *problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
