"""`python -m benchmarks`: measures every workload for this project and each installed peer.

The processes run one after the other, in rounds, so that other load on the machine affects all
peers alike. Writes OUTPUT/benchmarks.json and benchmarks.md after every workload. --curves writes
curves.json and curves.png instead: the time of a step over hidden size, batch size and length.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.peers import PEERS, Peer
from benchmarks.workloads import CURVES, WORKLOADS, Workload, tiny

ROOT = Path(__file__).parent.parent


def main() -> int:
    args = _parse()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.curves:
        _measure_curves(args)
        return 0
    results: dict[str, Any] = {"machine": report.describe_machine(), "workloads": {}}
    for name in args.only:
        workload = tiny(WORKLOADS[name]) if args.tiny else WORKLOADS[name]
        print(f"{name}: {workload.about}", file=sys.stderr)
        names = [peer for peer in args.peers if _applies(PEERS[peer], workload)]
        with_floor = [*names, "floor"] if workload.kind in ("train", "sample") else names
        runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in with_floor}
        for _ in range(args.rounds):
            for peer in with_floor:
                runs[peer].append(_measure(workload, peer, args))
        results["workloads"][name] = {"workload": asdict(workload), "runs": runs}
        (args.output / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
        table = report.workload_table(workload, runs)
        print(table, flush=True)
        (args.output / "benchmarks.md").write_text(report.whole(results))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)

    def names_of(known: dict[str, Any]) -> Any:
        def parse(text: str) -> list[str]:
            names = text.split(",")
            if unknown := [name for name in names if name not in known]:
                raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; there are {','.join(known)}")
            return names

        return parse

    parser.add_argument(
        "--only", type=names_of(WORKLOADS), default=list(WORKLOADS), metavar="T1,S1"
    )
    parser.add_argument("--peers", type=names_of(PEERS), default=list(PEERS), metavar="torch,fused")
    parser.add_argument("--rounds", type=int, default=3, help="processes per peer and workload")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure in a process")
    parser.add_argument("--min_runs", type=int, default=3, help="fewest runs in a process")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--curves", action="store_true", help="measure the curves, not the table")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the programs")
    return parser.parse_args()


def _applies(peer: Peer, workload: Workload) -> bool:
    return (
        workload.kind in peer.kinds
        and workload.dtype in peer.dtypes
        and (not peer.only or workload.name in peer.only)
        and all(importlib.util.find_spec(module) for module in peer.modules)
    )


def _measure(workload: Workload, peer: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one peer in its own process; a failure is also a result."""
    request = {
        "workload": asdict(workload),
        "peer": peer,
        "seconds": args.seconds,
        "min_runs": args.min_runs,
    }
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(request)]
    # Starts are cold: no program that was compiled before is used.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.time()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"  {peer} failed: {done.stderr[-500:]}", file=sys.stderr)
        return {"error": done.stderr.strip().splitlines()[-1:]}
    result = json.loads(done.stdout.splitlines()[-1])
    if workload.kind == "start":
        result["seconds"] = [result["first_at"] - start]
    return result


def _measure_curves(args: argparse.Namespace) -> None:
    results: dict[str, Any] = {"machine": report.describe_machine(), "curves": {}}
    peers = [peer for peer in args.peers if peer in ("torch", "scan", "fused")]
    for axis, workloads in CURVES.items():
        results["curves"][axis] = {}
        for peer in peers:
            points = []
            for workload in workloads:
                sized = tiny(workload) if args.tiny else workload
                run = _measure(sized, peer, args)
                points.append({"x": getattr(workload, axis), **run})
                print(axis, peer, points[-1]["x"], report.median(run), file=sys.stderr)
            results["curves"][axis][peer] = points
            (args.output / "curves.json").write_text(json.dumps(results, indent=1) + "\n")
    report.plot_curves(results, args.output / "curves.png")


if __name__ == "__main__":
    sys.exit(main())
