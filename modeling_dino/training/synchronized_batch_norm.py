# SPDX-License-Identifier: Apache-2.0
"""Batch norm whose statistics come from the batches of all processes, on any device.

PyTorch's `SyncBatchNorm` is for GPUs alone. As in the original, student and teacher are both synchronised.
"""

import torch
import torch.distributed as dist
from torch import nn


class SumOverProcesses(torch.autograd.Function):
    """Computes the sum over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return SumOverProcesses.forward(ctx, gradient)


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalises over the batches of all processes, which may differ in size. In eval mode it is plain batch norm."""

    def _check_input_dim(self, x: torch.Tensor):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        dims = [dim for dim in range(x.ndim) if dim != 1]  # (B, C) or (B, C, h, w)
        values = x.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = SumOverProcesses.apply(torch.cat([values.sum(dims), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centered = values - per_channel(mean, x.ndim)
        # In a second pass: the mean of squares less the square of the mean would lose digits.
        variance = SumOverProcesses.apply(centered.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach(), count)
        normalised = centered * per_channel(torch.rsqrt(variance + self.eps), x.ndim)
        return (normalised * per_channel(self.weight, x.ndim) + per_channel(self.bias, x.ndim)).to(x.dtype)

    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor):
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(
                variance * count / (count - 1).clamp(min=1), self.momentum
            )  # unbiased, as nn.BatchNorm2d's


def per_channel(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """Reshapes (C,) -> (1, C, 1, …) of `ndim` dimensions."""
    return values.view(1, -1, *[1] * (ndim - 2))


def synchronize_batch_norms(model: nn.Module):
    """Makes the batch norms of a model, in place, synchronized ones; parameters, statistics and names stay."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = SynchronizedBatchNorm
