# SPDX-License-Identifier: Apache-2.0
"""Groups of parameters, clipping of gradients, and LARS beside PyTorch's optimizers.

References: `clip_gradients`, `LARS` and `get_params_groups` of
https://github.com/facebookresearch/dino/blob/7c446df/utils.py; DINOv2's rates that decay by layer,
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/utils/param_groups.py.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoPreTrainedModel, backbone_class


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


class Multipliers(NamedTuple):
    """Says what the rates of a parameter are multiplied by, and whether it is the last layer of a head."""

    learning_rate: float
    weight_decay: float
    is_last_layer: bool


def layer_of(name: str, config: DinoConfig) -> int:
    """Returns the layer of a parameter: 0 before the first block or stage, and one more than these after the last."""
    layer = backbone_class(config).layer_of(name.removeprefix("backbone."))
    return config.num_hidden_layers + 1 if layer is None else layer


def rate_multipliers(
    model: DinoPreTrainedModel, layer_decay: float = 1.0, patch_embed_multiplier: float = 1.0
) -> dict[str, Multipliers]:
    """
    Returns the multipliers of each trained parameter of a model, by name, as DINOv2's.

    Biases, norms and layer scales have no weight decay. They are told by their names, so that norms which a name does
    not tell (those between the stages of a ConvNeXt) have it; batch norms, which DINOv2 has none of, by their kind.

    Args:
        model: with a `backbone`.
        layer_decay: the learning rate of layer l is multiplied by layer_decay ** (last layer - l); see [`layer_of`].
        patch_embed_multiplier: by which the patch embedding's learning rate is multiplied besides.
    """
    last, multipliers = model.config.num_hidden_layers + 1, {}
    batch_norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = layer_decay ** (last - layer_of(name, model.config))
            rate *= patch_embed_multiplier if ".patch_embed." in name else 1.0
            is_plain = not (name.endswith("bias") or "norm" in name or "gamma" in name or name in batch_norms)
            multipliers[name] = Multipliers(rate, float(is_plain), "last_layer" in name)
    return multipliers


def layered_parameter_groups(
    model: DinoPreTrainedModel, layer_decay: float = 1.0, patch_embed_multiplier: float = 1.0
) -> list[dict]:
    """
    Returns the trained parameters in groups of equal [`rate_multipliers`], which [`set_rates`] takes.

    Its arguments are those of `rate_multipliers`.
    """
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    parameters = dict(model.named_parameters())
    for name, multipliers in rate_multipliers(model, layer_decay, patch_embed_multiplier).items():
        groups.setdefault(multipliers, []).append(parameters[name])
    return [
        {
            "params": params,
            "decays": bool(multipliers.weight_decay),
            "weight_decay": 0.0,
            "rate_multiplier": multipliers.learning_rate,
            "is_last_layer": multipliers.is_last_layer,
        }
        for multipliers, params in groups.items()
    ]


def set_rates(
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    weight_decay: float,
    last_layer_learning_rate: float | None = None,
):
    """
    Sets the learning rate of all groups, and the weight decay of those that have one.

    Args:
        optimizer: of [`parameter_groups`] or [`layered_parameter_groups`].
        last_layer_learning_rate: of the last layers of heads, where they are groups of their own; by default that of
            all. It is 0 while they are frozen; Adam's moments gather meanwhile.
    """
    for group in optimizer.param_groups:
        is_other = group.get("is_last_layer") and last_layer_learning_rate is not None
        rate = last_layer_learning_rate if is_other else learning_rate
        group["lr"] = rate * group.get("rate_multiplier", 1.0)
        if group["decays"]:
            group["weight_decay"] = weight_decay


def square_root_scaling(base_learning_rate: float, batch_size: int, reference: int = 1024) -> float:
    """
    Returns the learning rate for a batch as DINOv2 scales it: the base rate is that of `reference` images.

    DINOv3's is four times as large.
    """
    return base_learning_rate * math.sqrt(batch_size / reference)


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
    norms = torch.stack([whole(norm) for norm in torch._foreach_norm(gradients)])
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], list(scales.unbind()))
    return torch.linalg.vector_norm(norms)


def clip_each_module(modules: Iterable[nn.Module], max_norm: float) -> list[torch.Tensor]:
    """
    Scales down, in place, the gradient of each module whose norm is above `max_norm`, as DINOv2 does that of
    backbone and heads.

    Returns:
        the norm of each module's gradient, before.
    """
    return [whole(nn.utils.clip_grad_norm_(module.parameters(), max_norm)) for module in modules]


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
