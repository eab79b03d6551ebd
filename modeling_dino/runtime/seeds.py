# SPDX-License-Identifier: Apache-2.0
"""Makes random draws repeatable, without a change to the draws of others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds PyTorch's global generator of the CPU, from which v2 draws, and puts its state back at the end."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would start the devices' anew, too
        yield
