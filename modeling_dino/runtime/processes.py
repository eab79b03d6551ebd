# SPDX-License-Identifier: Apache-2.0
"""Finds the processes that work together, and how many more there is room for."""

import gc
import itertools
import multiprocessing.util
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from tempfile import gettempdir
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

from .extras import require


if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.get_logger(__name__)

PATIENCE = timedelta(days=30)  # for which a process that is done waits for the others
COUNTERS = itertools.count()  # of this process
MAX_READING = 256  # processes that read images, each of which imports PyTorch
FEW_IMAGES = 256  # so few are not worth starting worker processes for


def processes() -> "PartialState":
    """
    Returns the state of the processes of `accelerate launch` or torchrun. Raises ValueError if several were started,
    and do not work together.
    """
    backend = {"backend": "gloo"} if shares_gpus() else {}
    state = require("accelerate").PartialState(cpu=on_cpu(), timeout=PATIENCE, **backend)
    check_joined(state.num_processes)
    return state


def wait_for_everyone():
    """Waits until all processes are here. Accelerate's own waiting takes a GPU of each process."""
    if shares_gpus():
        torch.distributed.barrier()
    else:
        processes().wait_for_everyone()


def shared_counter() -> Callable[[], int]:
    """
    Returns a function that counts from 0 on, over all processes: each number is given to one. All processes have to
    make their counters in the same order.
    """
    number = next(COUNTERS)
    if processes().num_processes == 1:
        return itertools.count().__next__
    store = torch.distributed.distributed_c10d._get_default_store()
    return lambda: store.add(f"modeling-dino/{number}", 1) - 1


def on_cpu() -> bool:
    """Returns whether processes work on CPUs, which accelerate has to be told: else it does not join them."""
    return (
        require("accelerate.utils").parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    )


def shares_gpus() -> bool:
    """Returns whether processes on this machine have to share a GPU, which NCCL refuses and Gloo allows."""
    return torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()


def started_processes() -> int:
    """Returns how many processes torchrun or `accelerate launch` says it has started; 1 without them."""
    started = os.environ.get("WORLD_SIZE", "1")
    if not (started.isdecimal() and int(started)):
        raise ValueError(f"the environment variable WORLD_SIZE={started} must be a number of processes")
    return int(started)


def check_joined(num_processes: int):
    """Raises ValueError if more processes were started than work together: each would do all of the work."""
    started = started_processes()
    if started > num_processes:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE={started}), but each works for itself: set "
            "ACCELERATE_USE_CPU=true to join them on CPUs, or start one process"
        )


def leave_processes():
    """
    Ends the group of processes, after work that did not fail; the others may still wait for one that did.

    Threads of the group that outlive the interpreter abort the process, since they may still hold Python's objects.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a trainer is part of a circle, and its model holds the group
        torch.distributed.destroy_process_group()


def cores_of_process(num_processes: int) -> int:
    """Returns how many cores each of so many processes on this machine can have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes)


def reading_processes(wanted: int | None, num_images: int | None, num_processes: int = 1) -> int:
    """
    Returns how many processes read images: if None are asked for, none for few images, else one a spare core. Raises
    ValueError if more are asked for than a machine can start, or any where they cannot hand on what they read.
    """
    if wanted is not None and not 0 <= wanted <= MAX_READING:
        raise ValueError(f"num_workers={wanted} must be between 0 and {MAX_READING}")
    few = num_images is not None and num_images <= FEW_IMAGES
    number = (0 if few else max(1, cores_of_process(num_processes) - 1)) if wanted is None else wanted
    if number and not has_room_for_sockets():
        folder = f"the folder for temporary files, {gettempdir()}, has too long a path for the sockets of processes"
        if wanted is not None:
            raise ValueError(f"{folder} that read images: set TMPDIR to another, or num_workers=0")
        logger.warning(f"{folder}, so that this one reads the images: set TMPDIR to another for more speed")
        return 0
    return number


def has_room_for_sockets() -> bool:
    """Returns whether the sockets by which processes share tensors have short enough a path."""
    if os.name != "posix" or hasattr(multiprocessing.util, "_SUN_PATH_MAX"):  # Python then finds another folder
        return True
    longest = 107 if sys.platform == "linux" else 103  # bytes, with one of 0 after them
    return len(os.fsencode(gettempdir() + "/pymp-12345678/listener-12345678")) <= longest
