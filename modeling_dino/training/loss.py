# SPDX-License-Identifier: Apache-2.0
"""Joins the losses of `losses/`: the loss of DINO, and weighted sums of several, as those of DINOv2 and DINOv3.

Papers: https://arxiv.org/abs/2104.14294, algorithm 1; https://arxiv.org/abs/2304.07193, section 4;
https://arxiv.org/abs/2508.10104, sections 3 and 4.
"""

import math
from collections.abc import Mapping

import torch

from .losses.centering import teacher_probabilities
from .losses.cross_entropy import without_autocast
from .losses.dino import cross_view_entropy, pair_count


def dino_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    center: torch.Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    num_global_crops: int = 2,
) -> torch.Tensor:
    """
    Returns the loss of DINO, [`cross_view_entropy`] with [`teacher_probabilities`], in float32 whatever the autocast.

    Its arguments and errors are those of these two. Call [`update_center`] afterwards.
    """
    if num_global_crops < 1 or len(teacher) % num_global_crops:
        raise ValueError(f"the teacher has {len(teacher)} outputs, which are not those of {num_global_crops} crops")
    with without_autocast(student):
        targets = teacher_probabilities(teacher, center, teacher_temperature, num_global_crops)
        return cross_view_entropy(student, targets, student_temperature)


def pair_shares(num_global_crops: int, num_local_crops: int, ignore_diagonal: bool = True) -> tuple[float, float]:
    """
    Returns the shares of the pairs of global crops, and of local with global ones, in all pairs of crops.

    They are the weights with which DINOv2 and DINOv3 sum the losses of global and of local crops; the sum is then
    the loss of DINO.

    Args:
        ignore_diagonal: whether a global crop is not paired with itself.

    Raises:
        ValueError: if there is no pair.
    """
    of_global = pair_count(num_global_crops, num_global_crops, ignore_diagonal)
    of_local = pair_count(num_global_crops, num_local_crops, ignore_diagonal=False)
    if of_global + of_local < 1:
        raise ValueError(f"{num_global_crops} global and {num_local_crops} local crops make no pair")
    return of_global / (of_global + of_local), of_local / (of_global + of_local)


def weighted_sum(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """
    Returns the sum of losses, each times the weight of its name; one without a weight counts nothing.

    Raises:
        ValueError: if the weights cannot work ([`check_weights`]), or a weight is of a loss that is not there.
    """
    check_weights(weights)
    missing = [name for name, weight in weights.items() if weight and name not in losses]
    if missing:
        raise ValueError(f"there is no loss {', '.join(missing)}: there are {', '.join(losses)}")
    return sum(losses[name] * weight for name, weight in weights.items() if weight)


def check_weights(weights: Mapping[str, float]):
    """Raises ValueError if a weight is negative or not finite, or all are zero; the message names it."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight {weight} of the loss {name} must be a finite number of at least 0")
    if not any(weights.values()):
        raise ValueError(f"all weights are 0 ({', '.join(weights) or 'there are none'}): there is nothing to learn")
