# SPDX-License-Identifier: Apache-2.0
"""Finds the processes that work together, and how many more there is room for."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from .extras import require


if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(days=30)  # for which a process that is done waits for the others
FEW_IMAGES = 256  # so few are not worth starting worker processes for


def processes() -> "PartialState":
    """Returns the state of the processes of `accelerate launch` or torchrun."""
    accelerate = require("accelerate")
    # accelerate has to be told where there are only CPUs
    on_cpu = accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return accelerate.PartialState(cpu=on_cpu, timeout=PATIENCE)


def cores_of_process(num_processes: int) -> int:
    """Returns how many cores each of so many processes on this machine can have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes)


def reading_processes(wanted: int | None, num_images: int | None, num_processes: int = 1) -> int:
    """Returns how many processes read images: if None are asked for, none for few images, else one a spare core."""
    if wanted is not None:
        return wanted
    few = num_images is not None and num_images <= FEW_IMAGES
    return 0 if few else max(1, cores_of_process(num_processes) - 1)
