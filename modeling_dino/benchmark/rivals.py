# SPDX-License-Identifier: Apache-2.0
"""
Makes the same backbone of other libraries, with the same weights.

A library is used if it is installed and has the backbone.
"""

import copy
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from ..configuration_dino import RESNET_DEPTHS
from ..modeling_dino import DinoModel


def feature_rivals(model: DinoModel, libraries: Sequence[str], image_size: int | None = None) -> dict[str, nn.Module]:
    """
    Returns the backbone as modules of other libraries by their names; transformers' ViT with two kernels.

    They compute features of images, (B, C, H, W) -> (B, D), on the model's device and in its dtype.

    Args:
        image_size: side of the images, if it is known before; learned positions are then resized to it once.
    """
    makers = {"timm": _timm_rival, "transformers": _transformers_rivals, "torchvision": _torchvision_rival}
    full = made_for(copy.deepcopy(model).float().cpu(), image_size or model.config.image_size)
    rivals = {}
    for name in libraries:
        if find_spec(name) is not None:
            rivals |= makers[name](full)
    return {name: rival.eval().to(model.device, model.dtype) for name, rival in rivals.items()}


@torch.no_grad()
def made_for(model: DinoModel, image_size: int) -> DinoModel:
    """Makes this size of images the native one of a model, which then has no positions to resize."""
    if getattr(model.backbone, "pos_embed", None) is not None:
        images = torch.zeros(1, model.config.num_channels, image_size, image_size)
        model.backbone.pos_embed = nn.Parameter(model.backbone.positions(images))
        model.config.image_size = image_size
    return model


class FeatureOnly(nn.Module):
    """Computes a model of transformers, and returns its feature."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(images)
        if output.last_hidden_state.ndim == 4:
            return output.pooler_output.flatten(1)
        return output.last_hidden_state[:, 0]


def _timm_rival(model: DinoModel) -> dict[str, nn.Module]:
    import timm

    from conversion_scripts.recognition import format_for

    try:
        export = format_for(model.config, "timm").from_dino(model.config, model.state_dict())
    except ValueError:  # timm has no such backbone
        return {}
    theirs = timm.create_model(export.config["architecture"], **export.config["model_args"])
    theirs.load_state_dict(export.contents)
    return {"timm": theirs}


def _torchvision_rival(model: DinoModel) -> dict[str, nn.Module]:
    import torchvision

    if model.config.backbone not in RESNET_DEPTHS or model.config.uses_cifar_stem:
        return {}
    theirs = torchvision.models.get_model(model.config.backbone)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(model.backbone.state_dict())
    return {"torchvision": theirs}


def _transformers_rivals(model: DinoModel) -> dict[str, nn.Module]:
    if model.config.backbone in RESNET_DEPTHS:
        return _transformers_resnet(model)
    from transformers import AutoModel

    from conversion_scripts.checkpoint import write_checkpoint
    from conversion_scripts.recognition import format_for

    try:
        export = format_for(model.config, "transformers").from_dino(model.config, model.state_dict())
    except ValueError:  # transformers has no such backbone
        return {}
    kernels = ("sdpa", "eager") if model.backbone.has_attention else ("eager",)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(export, Path(folder) / "model")
        return {
            f"transformers {kernel}": FeatureOnly(
                AutoModel.from_pretrained(Path(folder) / "model", attn_implementation=kernel)
            )
            for kernel in kernels
        }


def _transformers_resnet(model: DinoModel) -> dict[str, nn.Module]:
    """Copies the parameters; within a block, those of the shortcut come first in transformers."""
    from transformers import ResNetConfig, ResNetModel

    config = model.config
    if config.uses_cifar_stem:
        return {}
    width = config.resnet_width
    theirs = ResNetModel(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width * config.resnet_expansion * 2**i for i in range(4)],
            depths=config.depths,
            layer_type="bottleneck" if config.resnet_expansion == 4 else "basic",
        )
    )
    blocks = [model.backbone.conv1, model.backbone.bn1]
    for i in range(4):
        for block in getattr(model.backbone, f"layer{i + 1}"):
            blocks += list(block.downsample or []) + [
                module for name, module in block.named_children() if name.startswith(("conv", "bn"))
            ]
    ours = [tensor for module in blocks for tensor in module.state_dict().values()]
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, ours, strict=True)))
    return {"transformers": FeatureOnly(theirs)}
