"""`python -m benchmarks.scaling`: how training speeds up with more cores, devices or processes.

Strong scaling: the same step is shared by more devices. On a CPU these are processes of one core
each; on accelerators they are the devices of one process. It also measures what a cost model needs:
time and memory of a step over hidden size, batch size and length, and the time of an all-reduce
over its bytes.

Every point is measured in its own processes. Writes OUTPUT/scaling.json, .md and .png.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.measure import device_peak_bytes, peak_bytes, resident_bytes
from benchmarks.workloads import CURVES, WORKLOADS, Workload, tiny

ROOT = Path(__file__).parent.parent
SHARED = ("T1", "T3")  # a large step and a small one
ALL_REDUCE_BYTES = [4 << 2 * k for k in range(5, 13)]  # 4 KiB to 64 MiB
FEWEST_RUNS = 5


def main() -> int:
    args = _parse()
    if args.request:
        print(json.dumps(_measure(**json.loads(args.request))))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": report.describe_machine(), "steps": {}, "sizes": {}}
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    backend, count = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    on_cpu = backend == "cpu"
    most = len(os.sched_getaffinity(0)) if on_cpu else int(count)

    def run(workload: Workload | None, num_devices: int) -> dict[str, Any]:
        num_processes = num_devices if on_cpu or workload is None else 1
        return _run(
            asdict(workload) if workload else None,
            seconds=args.seconds,
            num_processes=num_processes,
            num_devices=num_devices,
            on_one_core=on_cpu,
        )

    for name in SHARED:
        workload = WORKLOADS[name]
        if args.tiny:
            workload = replace(tiny(workload), batch_size=4)
        numbers = [n for n in (1, 2, 4, 8, 16) if n <= most and workload.batch_size % n == 0]
        results["steps"][name] = {
            "workload": asdict(workload),
            "points": [{"x": n, **run(workload, n)} for n in numbers],
        }
        _write(results, args.output)
    for axis, workloads in CURVES.items():
        results["sizes"][axis] = [
            {"x": getattr(workload, axis), **run(tiny(workload) if args.tiny else workload, 1)}
            for workload in workloads
        ]
        _write(results, args.output)
    if on_cpu:  # two processes cannot share one accelerator
        results["all_reduce"] = run(None, 2)
    _write(results, args.output)
    print((args.output / "scaling.md").read_text())
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure a point")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the programs")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/scaling"), metavar="DIR"
    )
    parser.add_argument("--request", help=argparse.SUPPRESS)  # JSON for one process of a point
    return parser.parse_args()


def _run(
    workload: dict[str, Any] | None,
    *,
    seconds: float,
    num_processes: int,
    num_devices: int,
    on_one_core: bool,
) -> dict[str, Any]:
    """Starts the processes of one point; returns the measurements of the first process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    request = {
        "workload": workload,
        "seconds": seconds,
        "num_devices": num_devices,
        "coordinator": coordinator if num_processes > 1 else None,
        "num_processes": num_processes,
        "on_one_core": on_one_core,
    }
    processes = []
    try:
        for process_id in range(num_processes):
            argument = json.dumps({**request, "process_id": process_id})
            command = [sys.executable, "-m", "benchmarks.scaling", f"--request={argument}"]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise SystemExit(f"benchmarks.scaling: {request} failed")
    measured = json.loads(outputs[0].splitlines()[-1])
    about = workload["name"] if workload else "all-reduces"
    print(f"{about}, {num_processes} processes, {num_devices} devices: {measured}", file=sys.stderr)
    return measured


# --- in a process of its own ----------------------------------------------------------------------


def _measure(
    *,
    workload: dict[str, Any] | None,
    seconds: float,
    num_devices: int,
    coordinator: str | None,
    num_processes: int,
    process_id: int,
    on_one_core: bool,
) -> dict[str, Any]:
    """Measures in one process of a point: a training step or, without a workload, all-reduces."""
    if on_one_core:  # before JAX counts the cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[process_id % len(cores)]})
    from charrnn_jax.processes import join_processes

    if coordinator:
        join_processes(coordinator, num_processes=num_processes, process_id=process_id)
    if workload is None:
        return _all_reduces(seconds / len(ALL_REDUCE_BYTES))
    before = resident_bytes()
    run = _make_step(Workload(**workload), num_devices)
    median, spread = _time(run, seconds)
    return {
        "seconds": median,
        "spread": spread,
        "chars_per_second": Workload(**workload).chars / median,
        # Growth after the imports, including the compiler. None: the device does not report it.
        "host_bytes": peak_bytes() - before,
        "device_bytes": device_peak_bytes(),
    }


def _make_step(workload: Workload, num_devices: int) -> Callable[[], Any]:
    import jax
    import optax

    from benchmarks.peers import LEARNING_RATE, make_tokens
    from charrnn_jax.data.batches import make_batches
    from charrnn_jax.models.char_rnn import CharRNN
    from charrnn_jax.training import devices
    from charrnn_jax.training.dispatch import calls, make_run_steps, put_on_device
    from charrnn_jax.training.train_step import create_train_state, train_step

    size, length = workload.batch_size, workload.length
    mesh = devices.make_mesh(
        data_devices=num_devices,
        model_devices=1,
        batch_size=size,
        hidden_size=workload.hidden_size,
    )
    model = CharRNN(
        workload.vocabulary_size,
        workload.embedding_size,
        workload.hidden_size,
        cell=workload.cell,
        dtype=workload.dtype,
    )
    state = create_train_state(model, optax.adam(LEARNING_RATE), seed=0, batch_size=size)
    state = devices.place_state(state, mesh)
    run_steps = make_run_steps(
        train_step,
        sequence_length=length,
        num_steps=1,
        shardings=devices.state_shardings(state, mesh),
    )
    tokens = make_tokens(workload)
    text = put_on_device(tokens, mesh)
    queue = calls(
        make_batches(tokens, batching="chunks", batch_size=size, sequence_length=length, seed=0),
        start=0,
        stop=1 << 30,
        num_steps=1,
        next_stop=lambda step: 1 << 30,
        on_device=text is not None,
        rows=devices.own_rows(size),
    )

    def run() -> None:
        nonlocal state
        where = devices.place_rows(next(queue).where, mesh)
        state, metrics = run_steps(state, text, where, np.int32(1))
        jax.device_get(metrics)

    return run


def _all_reduces(seconds: float) -> dict[str, Any]:
    """Times sums of arrays over all processes, for each size."""
    import jax

    from charrnn_jax.training import devices

    mesh = devices.make_mesh(data_devices=0, model_devices=1, batch_size=2, hidden_size=1)
    add = jax.jit(lambda x: x.sum(0), out_shardings=devices.replicated(mesh))
    points = []
    for num_bytes in ALL_REDUCE_BYTES:
        local = np.ones((1, 1, num_bytes // 4), np.float32)
        array = devices.place_rows(local, mesh)[0]
        median, spread = _time(partial(_wait_for, add, array), seconds)
        points.append({"bytes": num_bytes, "seconds": median, "spread": spread})
    return {"points": points}


def _wait_for(function: Callable[[Any], Any], array: Any) -> None:
    function(array).block_until_ready()


def _time(run: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Returns the median of several runs, and the distance from their lowest to highest decile.

    The first process determines the number of runs, because all must run equally often.
    """
    from charrnn_jax.processes import from_first

    run()  # compiles
    start = time.perf_counter()
    run()
    one = time.perf_counter() - start
    times = []
    for _ in range(from_first(lambda: int(np.clip(seconds / one, FEWEST_RUNS, 1000)))):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    low, high = np.quantile(times, [0.1, 0.9])
    return float(np.median(times)), float(high - low)


# --- results --------------------------------------------------------------------------------------


def _write(results: dict[str, Any], folder: Path) -> None:
    (folder / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "scaling.md").write_text(_page(results))
    if "length" in results["sizes"]:
        _plot(results, folder / "scaling.png")


def latency_and_rate(points: list[dict[str, Any]]) -> tuple[float, float]:
    """Fits seconds = latency + bytes / rate to all-reduces; small and large ones count equally."""
    sizes = np.array([point["bytes"] for point in points], float)
    seconds = np.array([point["seconds"] for point in points])
    columns = np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None]
    latency, per_byte = np.linalg.lstsq(columns, np.ones_like(sizes), rcond=None)[0]
    return float(latency), float(1 / per_byte)


def _page(results: dict[str, Any]) -> str:
    lines = [
        "# Scaling",
        "",
        f"{results['machine']}. Written by `python -m benchmarks.scaling`. Medians; spread: from "
        "the lowest to the highest decile. On a CPU, every device is a process with its own core.",
        "",
        "| step | devices | time | spread | chars/s | speed-up | efficiency |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in results["steps"].items():
        alone = entry["points"][0]["seconds"]
        for point in entry["points"]:
            speedup = alone / point["seconds"]
            lines.append(
                f"| {name} {entry['workload']['about']} | {point['x']} | "
                f"{report.format_seconds(point['seconds'])} | "
                f"{report.format_seconds(point['spread'])} | {point['chars_per_second']:,.0f} | "
                f"{speedup:.2f} | {100 * speedup / point['x']:.0f}% |"
            )
    lines += ["", "| varied | value | time of a step | memory |", "|---|---|---|---|"]
    for axis, points in results["sizes"].items():
        lines += [
            f"| {axis} | {point['x']} | {report.format_seconds(point['seconds'])} | "
            f"{(point['device_bytes'] or point['host_bytes']) / 1e6:,.0f} MB |"
            for point in points
        ]
    if "all_reduce" in results:
        points = results["all_reduce"]["points"]
        latency, rate = latency_and_rate(points)
        lines += [
            "",
            f"All-reduce between two processes: {report.format_seconds(latency)} + bytes / "
            f"({rate / 1e6:,.0f} MB/s).",
            "",
            "| bytes | time | spread |",
            "|---|---|---|",
            *(
                f"| {point['bytes']:,} | {report.format_seconds(point['seconds'])} | "
                f"{report.format_seconds(point['spread'])} |"
                for point in points
            ),
        ]
    return "\n".join(lines) + "\n"


def _plot(results: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, sizes, reduce) = pyplot.subplots(1, 3, figsize=(14, 4))
    for name, entry in results["steps"].items():
        numbers = [point["x"] for point in entry["points"]]
        alone = entry["points"][0]["seconds"]
        ratios = [alone / point["seconds"] for point in entry["points"]]
        speed.plot(numbers, ratios, "o-", label=f"{name} {entry['workload']['about']}")
    speed.plot(numbers, numbers, ":", color="gray", label="linear")
    speed.set(xlabel="devices", ylabel="speed-up of a step", xticks=numbers)
    for axis, points in results["sizes"].items():
        xs = np.array([point["x"] for point in points])
        sizes.loglog(xs / xs[0], [point["seconds"] for point in points], "o-", label=axis)
    sizes.set(xlabel="multiple of the smallest value", ylabel="seconds per step")
    if "all_reduce" in results:
        points = results["all_reduce"]["points"]
        xs = np.array([point["bytes"] for point in points])
        latency, rate = latency_and_rate(points)
        reduce.loglog(xs, [point["seconds"] for point in points], "o", label="measured")
        reduce.loglog(xs, latency + xs / rate, ":", color="gray", label="latency + bytes / rate")
        reduce.legend(fontsize=8)
    reduce.set(xlabel="bytes", ylabel="seconds per all-reduce of two processes")
    for axis in (speed, sizes, reduce):
        axis.grid(alpha=0.3)
    speed.legend(fontsize=8)
    sizes.legend(fontsize=8)
    figure.suptitle(results["machine"], fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
