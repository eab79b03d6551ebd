# SPDX-License-Identifier: Apache-2.0
"""The loss of DINO, and the center that keeps its teacher from collapsing.

Paper: https://arxiv.org/abs/2104.14294, section 3.1 and algorithm 1.
Reference: `DINOLoss` of https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py.
Deviation: the loss does not move the center; `update_center` does, where the training step says so.

Letters in shapes: G global crops, S crops in all, B images, K prototypes.
"""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


def teacher_probabilities(
    teacher: torch.Tensor, center: torch.Tensor, temperature: float, num_global_crops: int = 2
) -> torch.Tensor:
    """
    Returns the student's targets: the teacher's outputs, centered and sharpened, in float32 and without gradient.

    Args:
        teacher: (G * B, K), the head's outputs, crop by crop.
        center: (1, K).
        temperature: the teacher's.
        num_global_crops: G.

    Returns:
        (G, B, K); the last dimension sums to 1.
    """
    logits = (teacher.detach().float() - center.float()) / temperature
    return logits.softmax(dim=-1).unflatten(0, (num_global_crops, -1))


def cross_view_entropy(student: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
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
        targets: (G, B, K) of [`teacher_probabilities`].
        temperature: the student's.

    Returns:
        a float32 scalar, the mean over pairs and images.

    Raises:
        ValueError: if the number of crops does not fit, or there is no pair of different crops.
    """
    num_global_crops, batch_size, _ = targets.shape
    num_crops, remainder = divmod(len(student), batch_size)
    if remainder or num_crops < num_global_crops or num_crops < 2:
        raise ValueError(
            f"the student has {len(student)} outputs, which must be those of at least {max(num_global_crops, 2)} "
            f"crops of {batch_size} images, {num_global_crops} of them global"
        )
    return CrossViewEntropy.apply(student, targets, temperature, torch.is_grad_enabled())


class CrossViewEntropy(torch.autograd.Function):
    """Computes [`cross_view_entropy`] and, in the same pass, its gradient. No gradient goes to the targets."""

    @staticmethod
    def forward(
        ctx, student: torch.Tensor, targets: torch.Tensor, temperature: float, with_gradient: bool
    ) -> torch.Tensor:
        num_global_crops, batch_size, _ = targets.shape
        num_crops = len(student) // batch_size
        num_terms = num_global_crops * (num_crops - 1) * batch_size  # pairs times images
        gradients, targets_of_all = [], targets.sum(0)
        total = student.new_zeros((), dtype=torch.float32)
        for crop, output in enumerate(student.chunk(num_crops)):
            is_global = crop < num_global_crops
            log_probabilities = (output.float() / temperature).log_softmax(dim=-1)  # (B, K)
            wanted = targets_of_all - targets[crop] if is_global else targets_of_all
            total -= (wanted * log_probabilities).sum(-1).sum()
            if with_gradient and ctx.needs_input_grad[0]:  # the latter alone is true under no_grad, too
                mass = num_global_crops - is_global  # to which the targets sum
                gradient = log_probabilities.exp_().mul_(mass).sub_(wanted).div_(temperature * num_terms)
                gradients.append(gradient.to(student.dtype))
        ctx.save_for_backward(*gradients)
        return total / num_terms

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return torch.cat([part * gradient.to(part.dtype) for part in ctx.saved_tensors]), None, None, None


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
    with torch.autocast(student.device.type, enabled=False):
        targets = teacher_probabilities(teacher, center, teacher_temperature, num_global_crops)
        return cross_view_entropy(student, targets, student_temperature)


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
    total_and_count = sum_over_processes(torch.cat([total, total.new_tensor([count])]))
    mean = total_and_count[:-1] / total_and_count[-1]
    center.lerp_(mean.to(center.dtype), 1 - momentum)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the sum over the processes, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def mean_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Returns the entropy in nats along the last dimension, averaged over the others."""
    return torch.special.entr(probabilities).sum(-1).mean()
