# SPDX-License-Identifier: Apache-2.0
"""The losses in several processes, for test_loss_processes.py: each process has a part of one batch."""

from pathlib import Path

import torch
import torch.distributed as dist

from modeling_dino.training.losses.centering import update_center
from modeling_dino.training.losses.koleo import koleo_loss
from modeling_dino.training.losses.sinkhorn import sinkhorn_knopp


NUM_PROCESSES = 2
SPLITS = {"unequal": (5, 3), "one has none": (8, 0)}  # outputs of each process
TEMPERATURE = 0.07
NEIGHBOURS = (1, 3)


def outputs() -> torch.Tensor:
    """The teacher's outputs of all processes, (8, 11); those of each are of another range."""
    values = torch.randn(8, 11, generator=torch.Generator().manual_seed(0))
    return values * torch.linspace(0.2, 1.5, 8).unsqueeze(1)


def features() -> torch.Tensor:
    """The inputs of all images, (6, 5): the nearest other of some is in the other process."""
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def layer() -> torch.nn.Linear:
    """What all processes train."""
    torch.manual_seed(2)
    return torch.nn.Linear(5, 4)


def koleo_of(part: torch.Tensor, num_neighbours: int, over_processes: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a part, and the gradient of the layer."""
    network = layer()
    loss = koleo_loss(network(part), num_neighbours, over_processes)
    loss.backward()
    return loss.detach(), network.weight.grad


def run(rank: int, folder: Path):
    """Computes the losses of one process, and saves what it and all together have."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_PROCESSES)
    found = {}
    for name, split in SPLITS.items():
        own = outputs().split(split)[rank]
        found[f"targets {name}"] = sinkhorn_knopp(own, TEMPERATURE)
        found[f"center {name}"] = torch.ones(1, own.shape[1])
        update_center(found[f"center {name}"], own, 0.9)
    for num_neighbours in NEIGHBOURS:
        loss, gradient = koleo_of(features().chunk(NUM_PROCESSES)[rank], num_neighbours, over_processes=True)
        for value in (loss, gradient):  # as distributed training does
            dist.all_reduce(value)
            value /= NUM_PROCESSES
        found[f"koleo {num_neighbours}"], found[f"koleo gradient {num_neighbours}"] = loss, gradient
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
