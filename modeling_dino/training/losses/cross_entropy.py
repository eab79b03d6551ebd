# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between distributions over prototypes, and entropy: what the losses of crops and patches share."""

from collections.abc import Iterator

import torch


ELEMENTS_ON_CPU = 2**20  # of rows x prototypes at once; so many stay in the cache, in half the time
ELEMENTS = 2**26  # on other devices, where each step should be long; 256 MiB in float32


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Returns the values in float32, or in float64 if they are; the losses are not computed in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def without_autocast(values: torch.Tensor) -> torch.autocast:
    """Returns a context in which products of matrices are computed in the precision of their factors."""
    return torch.autocast(values.device.type, enabled=False)


def cross_entropy_and_gradient(
    student: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    *,
    mass: int = 1,
    divisor: float | torch.Tensor = 1.0,
    weights: torch.Tensor | None = None,
    with_gradient: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Computes the cross-entropy of each row in one pass with its gradient, so that of all probabilities only the
    gradient need be kept.

    Args:
        student: (N, K), logits.
        targets: (N, K), whose rows sum to `mass`.
        temperature: the student's.
        divisor: a number by which only the gradient is divided, besides the temperature.
        weights: (N,), with which the rows are summed; 1 by default.

    Returns:
        the sum over rows, a scalar that is not divided by `divisor`, and its gradient (N, K) divided by it, in
        [`dtype_of_gradient`], or None.
    """
    log_probabilities = (at_least_float32(student) / temperature).log_softmax(dim=-1)  # (N, K)
    rows = (targets * log_probabilities).sum(-1)  # (N,)
    total = -(rows if weights is None else rows * weights).sum()
    if not with_gradient:
        return total, None
    gradient = log_probabilities.exp_().mul_(mass).sub_(targets).div_(temperature * divisor)
    if weights is not None:
        gradient.mul_(weights.unsqueeze(-1))
    return total, gradient.to(dtype_of_gradient(student))


def dtype_of_gradient(student: torch.Tensor) -> torch.dtype:
    """
    Returns the dtype in which a gradient is kept from the forward to the backward pass: the student's, but float32 for
    float16, in which most of the gradient would be 0 before the loss's scale multiplies it.
    """
    return torch.float32 if student.dtype == torch.float16 else student.dtype


def scaled_gradient(ctx, gradient: torch.Tensor) -> torch.Tensor:
    """Returns the gradient that a loss has saved, times that of the loss, in the student's dtype."""
    (of_student,) = ctx.saved_tensors
    return (of_student * gradient.to(of_student.dtype)).to(ctx.dtype)


def row_slices(values: torch.Tensor) -> Iterator[slice]:
    """Returns slices of the rows of (N, K) values that are computed at once."""
    rows_at_once = max((ELEMENTS_ON_CPU if values.is_cpu else ELEMENTS) // values.shape[1], 1)
    return (slice(start, start + rows_at_once) for start in range(0, len(values), rows_at_once))


def mean_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Returns the entropy in nats along the last dimension, averaged over the others."""
    rows, smallest = probabilities.reshape(-1, probabilities.shape[-1]), torch.finfo(probabilities.dtype).tiny
    # not `entr`, which takes three times as long on a CPU
    parts = [(rows[part].clamp(min=smallest).log_().mul_(rows[part])).sum() for part in row_slices(rows)]
    return -sum(parts) / len(rows)
