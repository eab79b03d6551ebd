# SPDX-License-Identifier: Apache-2.0
"""timm's ViTs and ResNets: hub folders, and files of `timm.create_model(…).state_dict()`; no head."""

import re

import torch

from conversion_scripts.checkpoint import Checkpoint, Export, is_state_dict, rename
from conversion_scripts.sizes import check_state_dict, first, infer_config
from modeling_dino.configuration_dino import RESNET_DEPTHS, VIT_SIZES, DinoConfig
from modeling_dino.image_processing_dino import channel_statistics
from modeling_dino.modeling_dino import backbone_class


KEYS = [("backbone.{p}", "{p}")]  # ours, theirs
CLASSIFIERS = ("head.weight", "head.bias", "fc.weight", "fc.bias")
VIT_NAME = re.compile(r"(?:vit|deit)_(tiny|small|base|large)_patch(\d+)_(\d+)")
# timm's names with the sizes they stand for; other sizes go by arguments
VIT_NAMES = {
    f"vit_{size}_patch{patch}_224"
    for size, patch in [
        ("tiny", 16),
        ("small", 16),
        ("small", 8),
        ("base", 16),
        ("base", 8),
        ("large", 16),
        ("large", 14),
    ]
}
LAYER_NORM_EPS = 1e-6
CROP_PCT = 0.9  # of timm's published DINO ViTs


def matches(checkpoint: Checkpoint) -> bool:
    """By the folder's configuration, or a ViT's classifier, which bare state dicts of the original have not."""
    if checkpoint.config is not None:
        return "architecture" in checkpoint.config
    contents = checkpoint.contents
    return is_state_dict(contents) and {"patch_embed.proj.weight", "head.weight"} <= set(contents)


def to_dino(
    checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
) -> tuple[DinoConfig, dict[str, torch.Tensor]]:
    """
    Args:
        which: unused; there is one network.
        num_heads: instead of what the architecture's name says.

    Raises:
        ValueError: if it is not a whole ViT or ResNet, or one that DINO has not.
    """
    settings = checkpoint.config or {}
    architecture = str(settings.get("architecture", ""))
    overrides = settings.get("model_args") or {}
    name = VIT_NAME.match(architecture)
    heads = num_heads or overrides.get("num_heads") or (VIT_SIZES[f"vit_{name[1]}"][2] if name else None)
    backbone = {key: tensor for key, tensor in checkpoint.contents.items() if key not in CLASSIFIERS}
    if len(backbone) < len(checkpoint.contents):
        checkpoint.notes.append(f"left out: {first(key for key in checkpoint.contents if key in CLASSIFIERS)}")
    state_dict = rename(backbone, KEYS, inverse=True)
    config = infer_config(state_dict, heads, position_interpolation="antialias")
    check_state_dict(config, state_dict)
    return config, state_dict


def reference(checkpoint: Checkpoint):
    """The checkpoint as timm's own model: images -> features; raises ImportError where timm is not installed."""
    from importlib import import_module

    settings = checkpoint.config or {}
    if "architecture" not in settings:
        raise ValueError("a bare state dict does not name its timm model: verify from a folder")
    model_args = {**(settings.get("model_args") or {}), "num_classes": 0}
    model = import_module("timm").create_model(settings["architecture"], **model_args).eval()
    backbone = {name: tensor for name, tensor in checkpoint.contents.items() if name not in CLASSIFIERS}
    model.load_state_dict(backbone)
    return model.to(next(iter(backbone.values())).dtype)


def from_dino(config: DinoConfig, state_dict: dict[str, torch.Tensor]) -> Export:
    """
    A folder as on the hub; its `model.safetensors` is what `timm.create_model(…, checkpoint_path=…)` takes.

    Raises:
        ValueError: if timm has no model of these sizes.
    """
    notes = [] if config.head_type is None else ["left out: the projection head, which timm has not"]
    has_patches = backbone_class(config).has_patch_tokens
    if has_patches and config.position_interpolation != "antialias":
        notes.append(
            f"timm resizes positions in its own way (position_interpolation is {config.position_interpolation!r}): "
            f"sizes other than {config.image_size} px differ a little"
        )
    if has_patches and config.layer_norm_eps != LAYER_NORM_EPS:
        notes.append(f"layer_norm_eps is {config.layer_norm_eps}, but timm's ViTs have {LAYER_NORM_EPS}")
    backbone = {name: tensor for name, tensor in state_dict.items() if name.startswith("backbone.")}
    mean, std = channel_statistics(config.num_channels)
    settings = {
        "architecture": architecture_of(config),
        "num_classes": 0,
        "num_features": config.hidden_size,
        "model_args": model_args_of(config),
        "pretrained_cfg": {
            "input_size": [config.num_channels, config.image_size, config.image_size],
            "interpolation": "bicubic",
            "crop_pct": CROP_PCT,
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "first_conv": "patch_embed.proj" if has_patches else "conv1",
        },
    }
    return Export(rename(backbone, KEYS), settings, notes)


def architecture_of(config: DinoConfig) -> str:
    """timm's name for the backbone; what differs from it goes into the arguments."""
    if backbone_class(config).has_patch_tokens:
        name = f"{config.backbone}_patch{config.patch_size}_{config.image_size}"
        return name if name in VIT_NAMES else f"{config.backbone}_patch16_224"
    if config.depths != list(RESNET_DEPTHS[config.backbone]) or config.resnet_width != 64:
        raise ValueError(f"timm has no {config.backbone} of depths {config.depths} and width {config.resnet_width}")
    return config.backbone


def model_args_of(config: DinoConfig) -> dict:
    """The arguments of `timm.create_model` that its name for the backbone does not fix."""
    arguments = {"in_chans": config.num_channels, "num_classes": 0}
    if not backbone_class(config).has_patch_tokens:
        if config.uses_cifar_stem:
            raise ValueError("timm's ResNets have no stem for small images")
        return arguments
    return {
        **arguments,
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }
