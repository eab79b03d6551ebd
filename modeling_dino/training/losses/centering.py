# SPDX-License-Identifier: Apache-2.0
"""The teacher's targets by centering and sharpening, and the center, which keeps the teacher from collapsing.

Paper: https://arxiv.org/abs/2104.14294, section 3.1 and algorithm 1.
Reference: `DINOLoss` of https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py; for patches,
`iBOTPatchLoss` of https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/loss/ibot_patch_loss.py.
Deviations: no function that computes targets moves the center; `update_center` does, where the training step says so.
The center of patches is moved by the mean over the patches of all processes. DINOv2 takes the mean of the processes'
means, which is another where they have different numbers of masked patches.
"""

import torch

from ..collectives import sum_over_processes
from .cross_entropy import at_least_float32, row_slices


def centered_softmax(teacher: torch.Tensor, center: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Returns the teacher's outputs, centered and sharpened, at least in float32 and without gradient.

    Args:
        teacher: (N, K), the head's outputs for crops or patches.
        center: (1, K).
        temperature: the teacher's.

    Returns:
        (N, K); each row sums to 1.
    """
    teacher, center = teacher.detach(), at_least_float32(center)
    targets = torch.empty_like(teacher, dtype=torch.promote_types(teacher.dtype, torch.float32))
    for rows in row_slices(teacher):
        targets[rows] = ((at_least_float32(teacher[rows]) - center) / temperature).softmax(dim=-1)
    return targets


def teacher_probabilities(
    teacher: torch.Tensor, center: torch.Tensor, temperature: float, num_global_crops: int = 2
) -> torch.Tensor:
    """Returns the [`centered_softmax`] of outputs for G global crops, crop by crop: (G * B, K) -> (G, B, K)."""
    return centered_softmax(teacher, center, temperature).unflatten(0, (num_global_crops, -1))


@torch.no_grad()
def update_center(center: torch.Tensor, teacher: torch.Tensor, momentum: float, count: int | None = None):
    """
    Moves the center, in place, towards the mean of the teacher's outputs of all processes.

    Args:
        center: (1, K).
        teacher: (N, K), the teacher's outputs since the last update.
        momentum: how much of the center stays; 0.9 in the original.
        count: how many outputs these are the sums of, where they were summed over micro-batches; else N.
    """
    total, count = teacher.float().sum(0), float(len(teacher) if count is None else count)
    total_and_count = sum_over_processes(torch.cat([total, total.new_full((1,), count)]))
    mean = total_and_count[:-1] / total_and_count[-1]
    center.lerp_(mean.to(center.dtype), 1 - momentum)
