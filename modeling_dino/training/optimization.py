# SPDX-License-Identifier: Apache-2.0
"""Groups of parameters, clipping of gradients, and LARS beside PyTorch's optimizers.

Reference: `clip_gradients`, `LARS` and `get_params_groups` of
https://github.com/facebookresearch/dino/blob/7c446df/utils.py.
"""

from collections.abc import Iterable

import torch
from torch import nn


OPTIMIZERS = ("adamw", "sgd", "lars")
MOMENTUM = 0.9  # of SGD and LARS


def parameter_groups(model: nn.Module) -> list[dict]:
    """
    Returns the trained parameters in two groups: those with weight decay, and biases and all else of one dimension.

    `"decays"` tells them apart. As in the original, positions, CLS token and a free gain of the head are decayed.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "decays": True},
        {"params": [p for p in trained if p.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float):
    """Sets the learning rate of all groups, and the weight decay of those of [`parameter_groups`] that have one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group["decays"]:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """
    Scales down, in place, each parameter's gradient whose own norm is above `max_norm`.

    Returns:
        the norm of all gradients together, before.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = [whole(norm) for norm in torch._foreach_norm(gradients)]
    scales = [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_([local(gradient) for gradient in gradients], scales)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the part that this process has of a tensor sharded over processes (FSDP); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns all of a tensor sharded over processes (FSDP); any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class LARS(torch.optim.Optimizer):
    """
    SGD with momentum whose steps are scaled, for each parameter of two or more dimensions, to the parameter's length.

    Paper: Large Batch Training of Convolutional Networks, https://arxiv.org/abs/1708.03888.

    Args:
        lr: learning rate.
        weight_decay: added to the gradient of parameters of two or more dimensions.
        trust: a step's length over the parameter's, for a learning rate of 1.
    """

    def __init__(
        self, params, lr: float = 0.0, momentum: float = MOMENTUM, weight_decay: float = 0.0, trust: float = 0.001
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure=None):
        """Makes a step. Returns the loss that the closure, if given, computes."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: nn.Parameter, group: dict):
        update = parameter.grad
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            length, update_length = parameter.norm(), update.norm()
            scale = group["trust"] * length / update_length
            update = update * torch.where((length > 0) & (update_length > 0), scale, torch.ones_like(scale))
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].mul_(group["momentum"]).add_(update)
        parameter.add_(state["momentum_buffer"], alpha=-group["lr"])
