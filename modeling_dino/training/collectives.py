# SPDX-License-Identifier: Apache-2.0
"""Sums, maxima and gathered rows of all processes; in one process alone they do nothing."""

import torch
import torch.distributed as dist


def num_processes() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_number() -> int:
    """Returns the number of this process, from 0 on."""
    return dist.get_rank() if num_processes() > 1 else 0


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum over the processes, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def max_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the elementwise maximum over the processes, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_over_processes(values: torch.Tensor) -> torch.Tensor:
    """
    Returns the rows of all processes, in the order of the processes: (B, D) -> (processes * B, D).

    The gradient of a row is the sum of the gradients that it has in all processes. Each process must have B rows.
    """
    return GatherOverProcesses.apply(values) if num_processes() > 1 else values


class GatherOverProcesses(torch.autograd.Function):
    """Computes [`gather_over_processes`] and its gradient, on any backend of `torch.distributed`."""

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(num_processes())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return sum_over_processes(gradient.clone()).chunk(num_processes())[process_number()]
