# SPDX-License-Identifier: Apache-2.0
"""Training of low-rank adapters in the place of a backbone's weights, for models whose optimizer would not fit.

Paper: LoRA, https://arxiv.org/abs/2106.09685. The adapters are PEFT's. They are in student and teacher alike, whose
other weights stay as they are, and are merged when the training ends, so that what is saved is a plain model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..runtime.extras import require
from .self_distillation import DinoForPreTraining


@contextmanager
def low_rank_adapters(model: DinoForPreTraining, rank: int) -> Iterator[None]:
    """
    Lets the linear layers of the backbones have adapters, which alone are trained beside the heads and the mask token;
    in the end they are merged into the weights.

    Args:
        rank: of each adapter; 0 for none.
    """
    if not rank:
        yield
        return
    backbones = [model.student.backbone, model.teacher.backbone]
    trained = [parameter for parameter in backbones[0].parameters() if parameter.requires_grad]
    add_adapters(backbones, rank)
    try:
        yield
    finally:
        for backbone in backbones:
            merge_adapters(backbone)
        for parameter in trained:
            parameter.requires_grad_(True)


def check_adapters(model: DinoForPreTraining):
    """
    Raises ValueError if a backbone has no layer that could have an adapter, and ImportError if PEFT is not installed.
    """
    require("peft", "lora")
    if not linear_layers(model.student.backbone):
        raise ValueError(
            f"lora_rank is of linear layers, of which a {model.student.backbone.kind} has none: leave it out"
        )


def linear_layers(backbone: nn.Module) -> list[str]:
    """Returns the names of the linear layers."""
    return [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]


def add_adapters(backbones: list[nn.Module], rank: int):
    """Adds equal adapters, which change nothing yet, to the student's and the teacher's backbone."""
    peft = require("peft", "lora")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=linear_layers(backbones[0]))
    for backbone in backbones:
        peft.inject_adapter_in_model(config, backbone)
    student, teacher = (dict(backbone.named_parameters()) for backbone in backbones)
    with torch.no_grad():
        for name, parameter in teacher.items():
            if "lora_" in name:
                parameter.copy_(student[name])
    backbones[1].requires_grad_(False)
    if "mask_token" in student:  # which may be new
        student["mask_token"].requires_grad_(True)


def merge_adapters(backbone: nn.Module):
    """Adds what the adapters do to the weights of their layers, and removes them."""
    layer_class = require("peft.tuners.tuners_utils", "lora").BaseTunerLayer
    adapted = {name: module for name, module in backbone.named_modules() if isinstance(module, layer_class)}
    for name, layer in adapted.items():
        layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())
    del backbone.peft_config
