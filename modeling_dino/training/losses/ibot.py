# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy at masked patches: the student, which does not see a patch, says of it what the teacher does.

Paper: iBOT, https://arxiv.org/abs/2111.07832, section 3.2; as DINOv2 uses it, https://arxiv.org/abs/2304.07193,
section 4.
Reference: `forward_masked` of
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/loss/ibot_patch_loss.py.

Heads see masked patches alone, so that nothing of the size images x patches x prototypes is made:

```
masks = draw_masks(…)                                            # of `..masking`
student = head(masked_tokens(student_tokens, masks.indices))     # the student saw the masked crops
teacher = teacher_head(masked_tokens(teacher_tokens, masks.indices))   # the teacher the whole ones
targets = sinkhorn_knopp(teacher, temperature)                   # or centered_softmax
loss = ibot_loss(student, targets, masks.weights, num_crops)
```

The heads are those of the crops, or heads of their own: that is the caller's to say.

Letters in shapes: N global crops (all of them, masked or not), P patches of a crop, M masked patches, K prototypes.
"""

import torch
from torch.autograd.function import once_differentiable

from .cross_entropy import cross_entropy_and_gradient, dtype_of_gradient, row_slices, scaled_gradient


def masked_tokens(patch_tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """
    Returns the tokens of masked patches.

    Args:
        patch_tokens: (N, P, D), without CLS and register tokens.
        indices: (M,), the numbers of the masked patches among all N * P.

    Returns:
        (M, D).

    Raises:
        ValueError: if the backbone gives no patch tokens.
    """
    if patch_tokens.ndim != 3 or patch_tokens.shape[1] == 0:
        raise ValueError(
            f"the patch loss needs patch tokens (images, patches, width), not {tuple(patch_tokens.shape)}: take a "
            "backbone that has them, as a ViT, or leave out the patch loss"
        )
    return patch_tokens.flatten(0, 1).index_select(0, indices)


def ibot_loss(
    student: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, num_crops: int, temperature: float = 0.1
) -> torch.Tensor:
    """
    Returns the cross-entropy of student and teacher at masked patches, averaged over each crop's, then over crops.

    ```
    for crop in range(num_crops):
        for patch in masked_patches[crop]:
            loss += -(targets[patch] * log_softmax(student[patch] / temperature)).sum() / len(masked_patches[crop])
    loss /= num_crops                          # those without masks, too
    ```

    Where gradients are accumulated, the mean over micro-batches of equal size is the loss of the batch.

    Args:
        student: (M, K), the head's outputs at masked patches.
        targets: (M, K), the teacher's probabilities at the same patches.
        weights: (M,), 1 / the number of masked patches of the patch's crop.
        num_crops: N, the number of global crops, masked or not.
        temperature: the student's.

    Returns:
        a scalar, at least in float32.

    Raises:
        ValueError: if no patch is masked, or the numbers of patches differ.
    """
    if len(student) == 0:
        raise ValueError("no patch is masked, so that there is no patch loss: raise the share of masked patches")
    if not len(student) == len(targets) == len(weights):
        raise ValueError(
            f"the patch loss has {len(student)} outputs of the student, {len(targets)} targets and {len(weights)} "
            "weights, which must be as many"
        )
    return MaskedPatchEntropy.apply(student, targets, weights, num_crops, temperature, torch.is_grad_enabled())


class MaskedPatchEntropy(torch.autograd.Function):
    """Computes [`ibot_loss`] and, in the same pass, its gradient. No gradient goes to the targets."""

    @staticmethod
    def forward(
        ctx,
        student: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        num_crops: int,
        temperature: float,
        with_gradient: bool,
    ) -> torch.Tensor:
        with_gradient = with_gradient and ctx.needs_input_grad[0]
        gradient = torch.empty_like(student, dtype=dtype_of_gradient(student)) if with_gradient else None
        total = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
        for rows in row_slices(student):
            part, of_rows = cross_entropy_and_gradient(
                student[rows],
                targets[rows],
                temperature,
                divisor=num_crops,
                weights=weights[rows],
                with_gradient=with_gradient,
            )
            total += part
            if with_gradient:
                gradient[rows] = of_rows
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return total / num_crops

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return scaled_gradient(ctx, gradient), *[None] * 5
