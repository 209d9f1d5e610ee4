"""Results as Markdown tables and as plots."""

import platform
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Workload


def describe_machine() -> str:
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        name = fields.get("model name", name)
        known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        flags = " ".join(flag for flag in known if flag in fields.get("flags", "").split())
        cores = sum(line.startswith("processor") for line in lines)
        name = f"{cores} cores of {name}"
    return f"{name} ({flags}), {platform.system()}, Python {platform.python_version()}"


def all_seconds(runs: list[dict[str, Any]]) -> list[float]:
    return [seconds for run in runs for seconds in run.get("seconds", [])]


def median(run: dict[str, Any]) -> float:
    return float(np.median(run["seconds"])) if run.get("seconds") else float("nan")


def workload_table(workload: Workload, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the table of one workload, one row for each peer."""
    floor = all_seconds(runs.get("floor", []))
    best = float(np.median(floor)) if floor else None
    reference = all_seconds(runs.get("torch", []))
    lines = [
        f"**{workload.name}** {workload.about}",
        "",
        "| peer | median | spread | chars/s | PyTorch / peer | % of floor | first run | "
        "memory | parameters | form |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    if best:
        rate = workload.flops / best / 1e9
        lines[0] += f"; its products alone: {format_seconds(best)}, {rate:.0f} GFLOP/s"
    for peer, processes in runs.items():
        seconds = all_seconds(processes)
        if peer == "floor":
            continue
        if not seconds:
            lines.append(f"| {peer} | failed |" + " |" * 8)
            continue
        middle = float(np.median(seconds))
        low, high = np.quantile(seconds, [0.1, 0.9])
        good = [run for run in processes if "error" not in run]
        grown = np.median([run["peak_bytes"] - run["resident_bytes_before"] for run in good])
        cells = [
            peer,
            format_seconds(middle),
            f"{100 * (high - low) / middle:.0f}%",
            f"{workload.chars / middle:,.0f}",
            f"{np.median(reference) / middle:.2f}" if reference else "",
            f"{100 * best / middle:.0f}%" if best else "",
            format_seconds(float(np.median([run["first_seconds"] for run in good]))),
            f"{grown / 1e6:,.0f} MB",
            f"{good[0]['num_params']:,}",
            good[0]["note"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def whole(results: dict[str, Any]) -> str:
    """Returns the whole page as Markdown."""
    workloads = results["workloads"].values()
    all_runs = [run for entry in workloads for runs in entry["runs"].values() for run in runs]
    versions: dict[str, str] = {}
    for run in all_runs:
        versions.update(run.get("versions", {}))
    tables = [workload_table(Workload(**entry["workload"]), entry["runs"]) for entry in workloads]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"{results['machine']}; {', '.join(f'{k} {v}' for k, v in versions.items())}.",
            "Written by `python -m benchmarks`; `peers.py` describes the peers. Medians of all "
            "runs of all processes. Spread: from the lowest to the highest decile, relative to the "
            "median. % of floor: time of the products alone, measured together with the peers, "
            "divided by the median. First run: including compilation. Memory: largest growth of "
            "the process after its imports, including the compiler.",
            "",
            *tables,
        ]
    )


def plot_curves(results: dict[str, Any], file: Path) -> None:
    """Plots the time of a step over each size in turn, with both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"hidden_size": "hidden size", "batch_size": "batch size", "length": "length"}
    figure, axes = pyplot.subplots(1, len(labels), figsize=(13, 4), sharey=True)
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for peer, points in results["curves"][name].items():
            xs = [point["x"] for point in points]
            axis.loglog(xs, [median(point) for point in points], "o-", label=peer)
        ends = np.array([xs[0], xs[-1]])
        last = median(points[-1])
        axis.loglog(ends, last * ends / ends[-1], ":", color="gray", label="linear")
        axis.set_xlabel(label)
        axis.set_xticks(xs, [str(x) for x in xs])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per training step")
    axes[0].legend()
    figure.suptitle("GRU, H256 B32 T64 except the varied size; " + results["machine"], fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
