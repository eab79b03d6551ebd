# SPDX-License-Identifier: Apache-2.0
"""The teacher's targets by Sinkhorn-Knopp, which gives every prototype the same share of the batch.

Papers: SwAV, https://arxiv.org/abs/2006.09882, section 3.1; DINOv2, https://arxiv.org/abs/2304.07193, section 4.
Reference: `sinkhorn_knopp_teacher` of
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/loss/dino_clstoken_loss.py.
Deviation: the largest logit is subtracted first, so that no logit is too large for `exp`.
"""

import torch

from ..collectives import max_over_processes, sum_over_processes
from .cross_entropy import at_least_float32, without_autocast


SMALLEST_SHARE = 1e-30  # of a prototype; below it, products of two factors leave float32


@torch.no_grad()
def sinkhorn_knopp(teacher: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """
    Returns the teacher's outputs, sharpened and balanced over the prototypes, without gradient.

    ```
    Q = exp(teacher / temperature).T          # (K, N), the outputs of all processes
    for _ in range(iterations):
        Q /= Q.sum(1, keepdim=True) * K       # every prototype gets the same share
        Q /= Q.sum(0, keepdim=True) * N       # every image or patch, too
    return (Q * N).T                          # now each sums to 1
    ```

    K and N cancel in the last line, so that no process need know how many outputs the others have. Q is a matrix whose
    rows and columns are scaled; the scales alone are kept, and each sum is a product of the matrix with one of them.

    The result depends on all outputs: those of a batch must come in one call. Pass the outputs of all micro-batches
    together where gradients are accumulated. Each process passes its own, and may have none.

    Args:
        teacher: (N, K), the head's outputs for crops or for masked patches.
        temperature: the teacher's.
        iterations: 3 in DINOv2 and DINOv3.

    Returns:
        (N, K), at least in float32; each row sums to 1.

    Raises:
        ValueError: if there are no iterations.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations} of Sinkhorn-Knopp must be at least 1")
    with without_autocast(teacher):
        logits = at_least_float32(teacher) / temperature
        largest = logits.amax(1)  # (N,)
        scales = (largest - max_over_processes(_largest_of(largest))).exp_()  # of the N outputs
        scaled = logits.sub_(largest.unsqueeze(1)).exp_()  # (N, K)
        for _ in range(iterations):
            shares = sum_over_processes(scaled.T @ scales)  # (K,)
            # of 1, else the scales would grow or shrink by N / K in every round
            prototype_scales = (shares / shares.sum()).clamp_(min=SMALLEST_SHARE).reciprocal_()
            scales = (scaled @ prototype_scales).reciprocal_()
        return scaled.mul_(prototype_scales).mul_(scales.unsqueeze(1))


def _largest_of(values: torch.Tensor) -> torch.Tensor:
    """Returns the largest of (N,) values as (1,), the smallest number if there are none."""
    return torch.cat([values, values.new_full((1,), torch.finfo(values.dtype).min)]).amax(0, keepdim=True)
