# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between crops of an image: the student's output for one crop with the teacher's for another.

Paper: https://arxiv.org/abs/2104.14294, section 3.1 and algorithm 1.
References: `DINOLoss` of https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py and of
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/loss/dino_clstoken_loss.py.

DINOv2 and DINOv3 compute two losses: of the global crops (pairs of different ones) and of the local crops (all pairs).
Each weighted by its number of pairs ([`pair_count`]), they give the loss of DINO of all crops together.

Letters in shapes: G global crops that the teacher sees, S crops of the student, B images, K prototypes.
"""

import torch
from torch.autograd.function import once_differentiable

from .cross_entropy import cross_entropy_and_gradient, dtype_of_gradient, scaled_gradient


def cross_view_entropy(
    student: torch.Tensor, targets: torch.Tensor, temperature: float, ignore_diagonal: bool = True
) -> torch.Tensor:
    """
    Returns the cross-entropy of the student's output for each crop with the teacher's for every other crop.

    ```
    for s in range(S):                 # the student's crops, global ones first
        for t in range(G):             # the teacher's, global ones alone
            if t != s:                 # never the same crop
                loss += -(targets[t] * log_softmax(student[s] / temperature)).sum(-1).mean()
    loss /= G * (S - 1)                # the number of pairs
    ```

    The log_softmax is the same for all t, so the targets are summed first: one pass over prototypes a student crop.
    Its gradient is computed with it, so that of all probabilities only that is kept.

    Args:
        student: (S * B, K), the head's outputs, crop by crop, global ones first.
        targets: (G, B, K), the teacher's probabilities.
        temperature: the student's.
        ignore_diagonal: leave out the pairs of equal numbers, which are one crop. If not, as for local crops by
            themselves, which the teacher does not see, all G * S pairs count.

    Returns:
        a scalar, at least in float32, the mean over pairs and images.

    Raises:
        ValueError: if the number of crops does not fit, or there is no pair of different crops.
    """
    num_global_crops, batch_size, _ = targets.shape
    least = max(num_global_crops, 2) if ignore_diagonal else 1
    num_crops, remainder = divmod(len(student), batch_size)
    if remainder or num_crops < least:
        raise ValueError(
            f"the student has {len(student)} outputs, which must be those of at least {least} "
            f"crops of {batch_size} images, {num_global_crops if ignore_diagonal else 0} of them global"
        )
    return CrossViewEntropy.apply(student, targets, temperature, ignore_diagonal, torch.is_grad_enabled())


class CrossViewEntropy(torch.autograd.Function):
    """Computes [`cross_view_entropy`] and, in the same pass, its gradient. No gradient goes to the targets."""

    @staticmethod
    def forward(
        ctx,
        student: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        ignore_diagonal: bool,
        with_gradient: bool,
    ) -> torch.Tensor:
        num_global_crops, batch_size, _ = targets.shape
        num_crops = len(student) // batch_size
        num_terms = pair_count(num_global_crops, num_crops, ignore_diagonal) * batch_size  # pairs times images
        with_gradient = with_gradient and ctx.needs_input_grad[0]  # the latter is true under no_grad, too
        gradient = torch.empty_like(student, dtype=dtype_of_gradient(student)) if with_gradient else None
        targets_of_all = targets.sum(0)
        total = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
        for crop in range(num_crops):
            rows = slice(crop * batch_size, (crop + 1) * batch_size)
            is_seen = ignore_diagonal and crop < num_global_crops  # by the teacher
            part, of_crop = cross_entropy_and_gradient(
                student[rows],
                targets_of_all - targets[crop] if is_seen else targets_of_all,
                temperature,
                mass=num_global_crops - is_seen,  # to which the targets sum
                divisor=num_terms,
                with_gradient=with_gradient,
            )
            total += part
            if with_gradient:
                gradient[rows] = of_crop
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return total / num_terms

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return scaled_gradient(ctx, gradient), *[None] * 4


def pair_count(num_global_crops: int, num_crops: int, ignore_diagonal: bool = True) -> int:
    """Returns the number of pairs of a teacher's and a student's crop: G * S, less the G pairs of equal numbers."""
    return num_global_crops * (num_crops - ignore_diagonal)
