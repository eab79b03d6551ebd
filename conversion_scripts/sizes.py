# SPDX-License-Identifier: Apache-2.0
"""Infers a configuration from the tensors of a state dict under our names, and checks that the two belong together."""

import re
from collections.abc import Iterable

import torch

from conversion_scripts.checkpoint import StateDict, first_names
from modeling_dino.checkpoint_files import check_weights
from modeling_dino.configuration_dino import BOTTLENECK_RESNETS, RESNET_DEPTHS, VIT_SIZES, DinoConfig
from modeling_dino.modeling_dino import DinoModel
from modeling_dino.positions import native_grid_side


PUBLISHED_HEAD_WIDTH = 64  # of all published ViTs


def infer_config(state_dict: StateDict, num_heads: int | None = None, **known) -> DinoConfig:
    """
    Infers the configuration of `backbone.*` and `head.*` tensors.

    Args:
        num_heads: attention heads, which no tensor tells; by default one for every 64 of the width.
        known: arguments of `DinoConfig` that the tensors do not tell.

    Raises:
        ValueError: if they are not a DINO's, or the number of heads cannot be told.
    """
    if "backbone.patch_embed.proj.weight" in state_dict:
        values = infer_vit(state_dict, num_heads)
    elif "backbone.conv1.weight" in state_dict:
        values = infer_resnet(state_dict)
    else:
        raise ValueError(f"neither a ViT nor a ResNet; the first keys are {first_names(state_dict)}")
    return DinoConfig(**{**values, **infer_head(state_dict), **known})


def infer_vit(state_dict: StateDict, num_heads: int | None) -> dict:
    """Returns the arguments of `DinoConfig` that a ViT's tensors tell."""
    needed = ("cls_token", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight")
    if missing := [name for name in needed if f"backbone.{name}" not in state_dict]:
        raise ValueError(f"a ViT without {', '.join(missing)}")
    hidden_size, num_channels, patch_size, _ = state_dict["backbone.patch_embed.proj.weight"].shape
    depth = count(state_dict, r"backbone\.blocks\.(\d+)\.")
    mlp_ratio = state_dict["backbone.blocks.0.mlp.fc1.weight"].shape[0] / hidden_size
    if num_heads is None and hidden_size % PUBLISHED_HEAD_WIDTH != 0:
        raise ValueError(f"the number of heads of a ViT {hidden_size} wide cannot be told: pass --num-heads")
    return {
        # sizes that have no name get the nearest in width
        "backbone": min(VIT_SIZES, key=lambda n: (abs(VIT_SIZES[n][0] - hidden_size), abs(VIT_SIZES[n][1] - depth))),
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads or hidden_size // PUBLISHED_HEAD_WIDTH,
        "num_channels": num_channels,
        "patch_size": patch_size,
        "image_size": native_grid_side(state_dict["backbone.pos_embed"]) * patch_size,
        "mlp_ratio": int(mlp_ratio) if mlp_ratio.is_integer() else mlp_ratio,
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in state_dict,
    }


def infer_resnet(state_dict: StateDict) -> dict:
    """Returns the arguments of `DinoConfig` that a ResNet's tensors tell."""
    stem = state_dict["backbone.conv1.weight"]
    is_bottleneck = "backbone.layer1.0.conv3.weight" in state_dict
    depths = []
    while blocks := count(state_dict, rf"backbone\.layer{len(depths) + 1}\.(\d+)\."):
        depths.append(blocks)
    names = [name for name in RESNET_DEPTHS if (name in BOTTLENECK_RESNETS) == is_bottleneck]
    last = state_dict.get(f"backbone.layer{len(depths)}.0.conv{3 if is_bottleneck else 2}.weight")
    if last is None:
        raise ValueError("a ResNet without residual blocks")
    is_cifar = stem.shape[-1] == 3
    return {
        # ResNet-34 and -50 have the same depths, so the kind of block decides first
        "backbone": min(names, key=lambda name: abs(sum(RESNET_DEPTHS[name]) - sum(depths))),
        "hidden_size": last.shape[0],
        "depths": depths,
        "num_channels": stem.shape[1],
        "resnet_stem": "cifar" if is_cifar else "imagenet",
        "image_size": 32 if is_cifar else 224,
    }


def infer_head(state_dict: StateDict) -> dict:
    """Returns the arguments of `DinoConfig` that a head's tensors tell."""
    head = {name.removeprefix("head."): t for name, t in state_dict.items() if name.startswith("head.")}
    if not head:
        return {"head_type": None}
    linears = [name for name, t in head.items() if name.startswith("mlp.") and t.ndim == 2]
    linears.sort(key=lambda name: int(re.sub(r"\D", "", name) or 0))
    if not linears:
        raise ValueError(f"a head without an MLP; its first keys are {first_names(head)}")
    output_dim = head[linears[-1]].shape[0]
    values = {
        "head_num_layers": len(linears),
        "head_use_bn": any(name.startswith("mlp.") and name.endswith("running_mean") for name in head),
    }
    if len(linears) > 1:
        values["head_hidden_dim"] = head[linears[0]].shape[0]
    if not any(name.startswith("last_layer.") for name in head):
        return {**values, "head_type": "simple", "projection_dim": output_dim}
    last = head.get("last_layer.weight_v", head.get("last_layer.weight"))
    if last is None:
        raise ValueError("a head whose last layer has no weight")
    values |= {"head_type": "dino", "head_bottleneck_dim": output_dim, "projection_dim": last.shape[0]}
    if "last_layer.weight_v" not in head:
        return {**values, "head_weight_norm": False}
    gain = head.get("last_layer.weight_g")
    return {**values, "norm_last_layer": gain is None or bool((gain == 1).all())}


def check_state_dict(config: DinoConfig, state_dict: StateDict):
    """Raises ValueError if names or shapes are not those of the configuration; names the first of them."""
    with torch.device("meta"):
        expected = DinoModel(config).state_dict()
    check_weights(config, {name: tuple(tensor.shape) for name, tensor in state_dict.items()}, expected)
    missing = [name for name in expected if name not in state_dict]
    extra = [name for name in state_dict if name not in expected]
    if missing or extra:
        parts = [f"lacks {first_names(missing)}"] * bool(missing) + [f"also has {first_names(extra)}"] * bool(extra)
        raise ValueError(f"not a whole {config.backbone}: it {' and '.join(parts)}")
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{name} holds numbers of {tensor.dtype}, but must hold those of {expected[name].dtype}")


def count(names: Iterable[str], pattern: str) -> int:
    """Counts the different numbers that stand in names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
