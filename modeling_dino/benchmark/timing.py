# SPDX-License-Identifier: Apache-2.0
"""Turns, medians and ratios: how `dino bench` measures.

All functions of a contest take turns, in another order each round, the first of which does not count; what is compared
are medians. A ratio is given only where the outputs are equal. Rates of arithmetic count a multiply-add as two, those
of the whole backbone whoever computes less, and are set beside that of a large matrix product in the same rounds.
"""

import ctypes
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..hub.loading import DTYPES
from .settings import PRODUCT_SIZES, BenchSettings


SLOW_PRODUCT_SIZE = 512  # of those in a dtype for which a CPU may have no instructions


@dataclass
class Contest:
    """
    Functions that do the same, and what is known of the task.

    Args:
        ours: names of functions that are this package's; the others are rivals.
        images: that one call takes; 0 where that says nothing.
        flops: of one call.
        tolerance: how much outputs may differ, relative to the largest value; None where there is none to compare.
    """

    what: str
    model: str
    functions: dict[str, Callable[[], torch.Tensor | None]]
    ours: list[str]
    tolerance: float | None
    images: int = 0
    flops: int = 0
    facts: dict = field(default_factory=dict)


def take_turns(
    functions: dict[str, Callable], rounds: int, clocks: Sequence[Callable[[], float]] = (time.perf_counter,)
) -> list[dict[str, list[float]]]:
    """Of each clock, the seconds of each function in each round; a round before them is not counted."""
    seconds = [{name: [] for name in functions} for _ in clocks]
    for turn in range(rounds + 1):
        for name in random.sample(list(functions), len(functions)):
            synchronize()
            started = [clock() for clock in clocks]
            functions[name]()
            synchronize()
            if turn:
                for values, clock, start in zip(seconds, clocks, started):
                    values[name].append(clock() - start)
    return seconds


def synchronize():
    """Waits for a GPU, if it is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(contest: Contest, settings: BenchSettings) -> dict:
    """A line of the report: seconds, rates, memory, differences, and ratios to the rivals whose output is equal."""
    outputs = {} if contest.tolerance is None else {name: function() for name, function in contest.functions.items()}
    peaks = {name: peak_mib(function) for name, function in contest.functions.items()}
    product, product_flops = matrix_product(settings)
    clocks = (time.perf_counter, time.process_time)
    timed, of_cpu = take_turns({**contest.functions, "": product}, settings.rounds, clocks)
    seconds = {name: statistics.median(values) for name, values in timed.items()}
    product_rate = product_flops / seconds.pop("")
    rivals = [name for name in contest.functions if name not in contest.ours]
    differences, equal = {}, rivals + contest.ours[1:]
    if contest.tolerance is not None:
        reference = outputs[contest.ours[0]]
        differences = {name: relative_difference(outputs[name], reference) for name in equal}
        equal = [name for name in equal if differences[name] <= contest.tolerance]
    fastest = min((name for name in rivals if name in equal), key=seconds.get, default=None)
    line = {"what": contest.what, "model": contest.model, **contest.facts, "seconds": seconds}
    line |= {"relative_difference": differences, "unequal": [name for name in differences if name not in equal]}
    line |= {"peak_mib": peaks, "fastest_rival": fastest}
    # of this process alone, and so without what others keep the cores from it
    line["cpu_seconds"] = {name: statistics.median(values) for name, values in of_cpu.items() if name}
    line["spread"] = {name: (max(v) - min(v)) / seconds[name] for name, v in timed.items() if name}
    if fastest is not None:
        compared = [name for name in contest.ours if name in equal or name == contest.ours[0]]
        line["ratio"] = {name: seconds[fastest] / seconds[name] for name in compared}
        cpu = line["cpu_seconds"]
        least = min(cpu[name] for name in rivals if name in equal)
        line["cpu_ratio"] = {name: least / cpu[name] for name in compared}
    if contest.images:
        line["images_per_second"] = {name: contest.images / value for name, value in seconds.items()}
    if contest.flops:
        line["flops_per_second"] = {name: contest.flops / value for name, value in seconds.items()}
        line["product_flops_per_second"] = product_rate
        line["share_of_product"] = {name: rate / product_rate for name, rate in line["flops_per_second"].items()}
    return line


def matrix_product(settings: BenchSettings) -> tuple[Callable[[], torch.Tensor], int]:
    """A product of large square matrices, and its operations."""
    is_slow = settings.device == "cpu" and settings.dtype != "float32"
    side = SLOW_PRODUCT_SIZE if is_slow else PRODUCT_SIZES[torch.device(settings.device).type]
    a, b = torch.randn(2, side, side, device=settings.device, dtype=DTYPES[settings.dtype])
    return lambda: a @ b, 2 * side**3


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()


def peak_mib(function: Callable) -> float | None:
    """Memory that a call takes at most beyond what is taken before it; None where that cannot be told."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what was freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident_kib("VmRSS")
        function()
        return (_resident_kib("VmHWM") - before) / 2**10
    except (OSError, TypeError):  # not on Linux
        return None


def _resident_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


__all__ = ["Contest", "measure", "relative_difference", "take_turns"]
