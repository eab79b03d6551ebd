# SPDX-License-Identifier: Apache-2.0
"""Runs `dino bench`: measures what was asked for, and gives the results as a table and as JSON."""

import json
import os
import platform
from collections.abc import Iterator
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..export.engines import GRAPH_ENGINES
from ..runtime.extras import check_extra
from ..runtime.marked_files import MARK, check_marked, marked_file
from ..runtime.options import takes_options
from .contests import measure_attention, measure_features, measure_imports, measure_loading
from .dinov2_training import DROP_PATH, measure_dinov2_training
from .engines import measure_engines
from .extraction import measure_extraction
from .knn import measure_knn
from .options import LIBRARIES, BenchOptions
from .training import measure_training


RESULTS_FORMAT = f"{MARK} bench 1"
MODEL_BENCHMARKS = {
    "features": measure_features,
    "latency": partial(measure_features, single=True),
    "attention": measure_attention,
    "engines": measure_engines,
    "training": measure_training,
    "training-dinov2": measure_dinov2_training,
    "training-dinov2-patch-head": partial(measure_dinov2_training, what="training-dinov2-patch-head", patch_head=True),
    "training-dinov2-drop-path": partial(measure_dinov2_training, what="training-dinov2-drop-path", **DROP_PATH),
    "loading": measure_loading,
    "extraction": measure_extraction,
}
# heading of a number: its key in a line of the results, how it is written, and by what it is multiplied
NUMBERS = {
    "ms": ("seconds", "{:.1f}", 1e3),
    "images/s": ("images_per_second", "{:.2f}", 1),
    "GFLOP/s": ("flops_per_second", "{:.1f}", 1e-9),
    "of product": ("share_of_product", "{:.0%}", 1),
    "MiB": ("peak_mib", "{:.0f}", 1),
    "ratio": ("ratio", "{:.2f}", 1),
    "of CPU time": ("cpu_ratio", "{:.2f}", 1),
    "of halves": ("share_of_halves", "{:.0%}", 1),
}


class BenchResults(dict):
    """Holds the measurements, which are saved as JSON and printed as a table."""

    def __str__(self) -> str:
        return table(self["lines"])


@takes_options(BenchOptions, command="bench")
def run_bench(options: BenchOptions) -> BenchResults:
    """
    Returns:
        the measurements, which print as a table.

    Raises:
        ValueError: if the file for the results could not be written, or has something else.
    """
    asked = ["engines"] if options.engines else options.what
    if "extraction" in asked:
        check_extra("bench --what extraction", "demo")
    if options.output is not None and not Path(options.output).absolute().parent.is_dir():
        raise ValueError(f"there is no folder for {options.output}: make it first")
    check_marked(options.output, RESULTS_FORMAT)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        lines = [line for what in asked for line in measured_lines(what, options) if line is not None]
    finally:
        torch.set_num_threads(threads)
    results = BenchResults(
        format=RESULTS_FORMAT,
        date=date.today().isoformat(),
        machine=machine(options.device),
        versions=versions(),
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        rounds=options.rounds,
        lines=lines,
    )
    if options.output is not None:
        with marked_file(Path(options.output), RESULTS_FORMAT) as file:
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def measured_lines(what: str, options: BenchOptions) -> Iterator[dict | None]:
    """Yields a line of the results for each model; None for a model that cannot take part."""
    if what == "knn":
        yield measure_knn(options)
        return
    if what == "loading":
        yield measure_imports(options)
    for name in options.models:
        yield MODEL_BENCHMARKS[what](name, options)


def machine(device: str) -> dict:
    """Returns the names of processor and GPU, and the number of cores."""
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"cpu": cpu, "cores": cores, "instructions": torch.backends.cpu.get_cpu_capability(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package, PyTorch and the installed libraries."""
    found = {"python": platform.python_version()}
    for name in ("modeling-dino", "torch", *LIBRARIES, *GRAPH_ENGINES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(lines: list[dict]) -> str:
    """Returns a row for each participant; ratios are to the fastest rival whose output is equal."""
    rows = [["what", "model", "who", *NUMBERS]]
    for line in lines:
        for who in line["seconds"]:
            numbers = {heading: (line.get(key, {}).get(who), *form) for heading, (key, *form) in NUMBERS.items()}
            cells = {heading: "" if n is None else form.format(n * by) for heading, (n, form, by) in numbers.items()}
            cells |= {"ratio": "differs"} if who in line["unequal"] else {}
            rows.append([line["what"], line["model"], who, *cells.values()])
        if not line["seconds"]:
            rows.append([line["what"], line["model"], "outputs differ: no ratio", *[""] * len(NUMBERS)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    aligned = [[c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)
