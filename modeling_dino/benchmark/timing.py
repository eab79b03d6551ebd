# SPDX-License-Identifier: Apache-2.0
"""
Measures the functions of a contest.

They take turns in a random order each round. The first round does not count, and medians of the others are compared. A
ratio is given only where the outputs are equal. Rates of arithmetic count the operations of the whole backbone, a
multiply-add as two, and are compared with the rate of a large matrix product in the same rounds.
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
from .options import BenchOptions


TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}  # relative to the largest value
PRODUCT_SIZES = {"cpu": 2048, "cuda": 8192}  # of square matrices, whose product gives the rate of the machine
TURN_ON_GPU = 0.05  # seconds
SLOW_PRODUCT_SIZE = 512  # in a dtype for which a CPU may have no instructions


@dataclass
class Contest:
    """
    Functions that do the same.

    Args:
        ours: names of this package's functions; outputs are compared with the first, and the others are rivals.
        tolerance: largest difference of outputs, relative to the largest value; None where there are none to compare.
        tolerances: the same for functions that compute in less precision, by their names.
        images, flops: of one call; 0 where that says nothing.
        facts: what else is written to the results.
    """

    what: str
    model: str
    functions: dict[str, Callable[[], torch.Tensor | None]]
    ours: list[str]
    tolerance: float | None
    images: int = 0
    flops: int = 0
    tolerances: dict[str, float] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


def take_turns(
    functions: dict[str, Callable], rounds: int, clocks: Sequence[Callable[[], float]] = (time.perf_counter,)
) -> list[dict[str, list[float]]]:
    """
    Returns the seconds by each clock of each function in each round, without a first round. On a GPU a function is
    called in its turn until `TURN_ON_GPU` is over, and its mean counts; each call is waited for.
    """
    seconds = [{name: [] for name in functions} for _ in clocks]
    calls = dict.fromkeys(functions, 1)
    for turn in range(rounds + 1):
        for name in random.sample(list(functions), len(functions)):
            synchronize()
            started = [clock() for clock in clocks]
            for _ in range(calls[name]):
                functions[name]()
                synchronize()
            took = [(clock() - start) / calls[name] for clock, start in zip(clocks, started)]
            if turn:
                for values, value in zip(seconds, took):
                    values[name].append(value)
            elif uses_gpu():
                calls[name] = max(1, round(TURN_ON_GPU / took[0]))
    return seconds


def uses_gpu() -> bool:
    """Returns whether a GPU is in use."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def synchronize():
    """Waits until a GPU has finished, if one is in use."""
    if uses_gpu():
        torch.cuda.synchronize()


def measure(contest: Contest, options: BenchOptions) -> dict:
    """Returns seconds, rates, memory, differences, and ratios to the fastest rival whose output is equal."""
    has_outputs = contest.tolerance is not None
    # Everything is called once, so that no peak of memory is that of compiling. Outputs are copied, since a CUDA graph
    # writes its next one to the same place.
    outputs = {name: call().clone() if has_outputs else call() for name, call in contest.functions.items()}
    peaks = {name: peak_mib(function) for name, function in contest.functions.items()}
    product, product_flops = matrix_product(options)
    clocks = (time.perf_counter, time.process_time)
    timed, of_cpu = take_turns({**contest.functions, "": product}, options.rounds, clocks)
    seconds = {name: statistics.median(values) for name, values in timed.items()}
    product_rate = product_flops / seconds.pop("")
    rivals = [name for name in contest.functions if name not in contest.ours]
    differences, equal = {}, rivals + contest.ours[1:]
    if has_outputs:
        reference = outputs[contest.ours[0]]
        differences = {name: relative_difference(outputs[name], reference) for name in equal}
        equal = [name for name in equal if differences[name] <= contest.tolerances.get(name, contest.tolerance)]
    fastest = min((name for name in rivals if name in equal), key=seconds.get, default=None)
    line = {"what": contest.what, "model": contest.model, **contest.facts, "seconds": seconds}
    line |= {"relative_difference": differences, "unequal": [name for name in differences if name not in equal]}
    line |= {"peak_mib": peaks, "fastest_rival": fastest}
    # of this process, and so without the time for which other processes had the cores
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


def matrix_product(options: BenchOptions) -> tuple[Callable[[], torch.Tensor], int]:
    """Returns a product of large square matrices, and the number of its operations."""
    is_slow = options.device == "cpu" and options.dtype != "float32"
    side = SLOW_PRODUCT_SIZE if is_slow else PRODUCT_SIZES[torch.device(options.device).type]
    a, b = torch.randn(2, side, side, device=options.device, dtype=DTYPES[options.dtype])
    return lambda: a @ b, 2 * side**3


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the largest difference relative to the largest value of `b`; infinity if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()


def peak_mib(function: Callable) -> float | None:
    """Measures the peak of the memory of a call, beyond that before it; None where it is not known."""
    if uses_gpu():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        peak = torch.cuda.max_memory_allocated() - before
        return peak / 2**20 or None  # a CUDA graph has allocated all it needs when it was recorded
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
