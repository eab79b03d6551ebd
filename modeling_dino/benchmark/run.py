# SPDX-License-Identifier: Apache-2.0
"""How fast the models are, beside the same in other libraries: `dino bench`.

`bench_contests.py` has what is measured, `bench_rivals.py` beside whom, `bench_timing.py` how.
"""

import json
import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..runtime.whole_files import whole_file
from .contests import BENCHMARKS
from .settings import LIBRARIES, BenchSettings


def run_benchmarks(settings: BenchSettings) -> dict:
    """The report: where and when, and the lines of all that was asked for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        lines = [line for what in settings.what for line in BENCHMARKS[what](settings)]
    finally:
        torch.set_num_threads(threads)
    return {
        "date": date.today().isoformat(),
        "machine": machine(settings.device),
        "versions": versions(),
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "lines": lines,
    }


def machine(device: str) -> dict:
    """Processor, cores, and GPU; no names of hosts."""
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"cpu": cpu, "cores": cores, "instructions": torch.backends.cpu.get_cpu_capability(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Of what is compared."""
    found = {"python": platform.python_version()}
    for name in ("modeling-dino", "torch", *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(report: dict) -> str:
    """A line a function, those of one contest together; the ratio is to the fastest rival whose output is equal."""
    rows = [["what", "model", "who", "ms", "images/s", "GFLOP/s", "of product", "MiB", "ratio", "of CPU time"]]
    for line in report["lines"]:
        for who, seconds in line["seconds"].items():
            ratio = line.get("ratio", {}).get(who)
            shown = "differs" if who in line["unequal"] else "" if ratio is None else f"{ratio:.2f}"
            rows.append(
                [
                    *(line["what"], line["model"], who, f"{seconds * 1e3:.1f}"),
                    optional(line.get("images_per_second"), who, "{:.2f}"),
                    optional(line.get("flops_per_second"), who, "{:.1f}", 1e-9),
                    optional(line.get("share_of_product"), who, "{:.0%}"),
                    optional(line.get("peak_mib"), who, "{:.0f}"),
                    shown,
                    optional(line.get("cpu_ratio"), who, "{:.2f}"),
                ]
            )
        if not line["seconds"]:
            rows.append([line["what"], line["model"], "outputs differ: no ratio", *[""] * 7])
    widths = [max(map(len, column)) for column in zip(*rows)]
    aligned = [[c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def optional(values: dict[str, float] | None, who: str, form: str, scale: float = 1) -> str:
    """A number, where there is one."""
    value = None if values is None else values.get(who)
    return "" if value is None else form.format(value * scale)


def write_report(report: dict, path: Path):
    """As JSON, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


__all__ = ["BENCHMARKS", "BenchSettings", "run_benchmarks", "table", "write_report"]
