# SPDX-License-Identifier: Apache-2.0
"""The processes that work together, and how many there is room for."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from .extras import require


if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(days=30)  # of a process that is done, for those that are not
FEW_IMAGES = 256  # not worth starting worker processes for


def processes() -> "PartialState":
    """The processes of `accelerate launch` or torchrun; accelerate has to be told where there are only CPUs."""
    accelerate = require("accelerate")
    on_cpu = accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return accelerate.PartialState(cpu=on_cpu, timeout=PATIENCE)


def cores_of_process(num_processes: int) -> int:
    """Cores that each of so many processes on this machine can have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes)


def spare_workers(num_images: int | None, num_processes: int = 1) -> int:
    """Processes that read images: none for few images, else one a core that is left."""
    few = num_images is not None and num_images <= FEW_IMAGES
    return 0 if few else max(1, cores_of_process(num_processes) - 1)


__all__ = ["cores_of_process", "processes", "spare_workers"]
