# SPDX-License-Identifier: Apache-2.0
"""Infers a configuration from the tensors of a state dict under our names, and checks that the two belong together."""

import re
from collections.abc import Iterable

import torch

from conversion_scripts.checkpoint import StateDict, first_names
from modeling_dino.checkpoint_files import check_weights
from modeling_dino.configuration_dino import (
    BOTTLENECK_RESNETS,
    CONVNEXT_SIZES,
    RESNET_DEPTHS,
    SWIGLU_RATIOS,
    VIT_SIZES,
    XCIT_SIZES,
    DinoConfig,
)
from modeling_dino.modeling_dino import DinoModel
from modeling_dino.positions import native_grid_side


PUBLISHED_HEAD_WIDTH = 64  # of all published ViTs but one
PUBLISHED_HEADS = {VIT_SIZES["vit_7b"][0]: VIT_SIZES["vit_7b"][2]}  # of that one, by its width
# what the width of SwiGLU is told by, in the order in which they are tried: ratios to the width of the tokens, and
# multiples to which it is rounded up
SWIGLU_WIDTHS = [
    (4, 8),
    (6, 8),
    (3, 64),
    *((ratio, multiple) for multiple in (8, 32, 64, 128) for ratio in (4, 6, 3, 8)),
]
PUBLISHED_ROPE_THETA = 100.0
ROUNDED = 0.02  # relative difference that periods may have from the published ones, which are rounded to bfloat16


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
        values = infer_vit(state_dict, num_heads, known)
    elif "backbone.patch_embed.proj.0.0.weight" in state_dict:
        values = infer_xcit(state_dict)
    elif "backbone.conv1.weight" in state_dict:
        values = infer_resnet(state_dict)
    elif "backbone.downsample_layers.0.0.weight" in state_dict:
        values = infer_convnext(state_dict)
    else:
        raise ValueError(f"neither a ViT nor a ResNet, ConvNeXt or XCiT; the first keys are {first_names(state_dict)}")
    return DinoConfig(**{**values, **infer_patch_head(state_dict), **infer_head(state_dict), **known})


def infer_vit(state_dict: StateDict, num_heads: int | None, known: dict) -> dict:
    """Returns the arguments of `DinoConfig` that a ViT's tensors tell."""
    is_swiglu = "backbone.blocks.0.mlp.w3.weight" in state_dict
    is_rotary = "backbone.rope_embed.periods" in state_dict or "rope_theta" in known
    needed = ["cls_token", "blocks.0.attn.qkv.weight", f"blocks.0.mlp.{'w1' if is_swiglu else 'fc1'}.weight"]
    needed += [] if is_rotary else ["pos_embed"]
    if missing := [name for name in needed if f"backbone.{name}" not in state_dict]:
        raise ValueError(f"a ViT without {', '.join(missing)}")
    hidden_size, num_channels, patch_size, _ = state_dict["backbone.patch_embed.proj.weight"].shape
    depth = count(state_dict, r"backbone\.blocks\.(\d+)\.")
    if is_rotary:
        positions = infer_periods(state_dict.get("backbone.rope_embed.periods"))
    else:
        positions = {"image_size": native_grid_side(state_dict["backbone.pos_embed"]) * patch_size}
    registers = state_dict.get("backbone.register_tokens")
    return {
        "backbone": nearest_vit(hidden_size, depth, is_swiglu),
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads or infer_num_heads(state_dict, hidden_size),
        "num_channels": num_channels,
        "patch_size": patch_size,
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in state_dict,
        "use_rms_norm": "backbone.norm.bias" not in state_dict,
        "untie_cls_and_patch_norms": "backbone.cls_norm.weight" in state_dict,
        "untie_global_and_local_cls_norm": "backbone.local_cls_norm.weight" in state_dict,
        "layerscale_value": 1e-5 if "backbone.blocks.0.ls1.gamma" in state_dict else None,
        "num_register_tokens": 0 if registers is None else registers.shape[1],
        "use_mask_token": "backbone.mask_token" in state_dict,
        **positions,
        **(infer_swiglu if is_swiglu else infer_mlp)(state_dict, hidden_size),
    }


def nearest_vit(hidden_size: int, depth: int, is_swiglu: bool) -> str:
    """Returns the name of a ViT, or of the nearest in width, depth and feed-forward network, if it has none."""

    def distance(name: str) -> tuple:
        width, blocks, _ = VIT_SIZES[name]
        return abs(width - hidden_size), abs(blocks - depth), (name in SWIGLU_RATIOS) != is_swiglu

    return min(VIT_SIZES, key=distance)


def infer_num_heads(state_dict: StateDict, hidden_size: int) -> int:
    """Returns the attention heads that rotary positions tell, or a published ViT has; raises ValueError if none."""
    periods = state_dict.get("backbone.rope_embed.periods")
    if periods is not None:
        return max(1, hidden_size // (4 * periods.numel()))
    if hidden_size % PUBLISHED_HEAD_WIDTH != 0:
        raise ValueError(f"the number of heads of a ViT {hidden_size} wide cannot be told: pass --num-heads")
    return PUBLISHED_HEADS.get(hidden_size, hidden_size // PUBLISHED_HEAD_WIDTH)


def infer_mlp(state_dict: StateDict, hidden_size: int) -> dict:
    """Returns the ratio of an MLP's width to that of the tokens."""
    ratio = state_dict["backbone.blocks.0.mlp.fc1.weight"].shape[0] / hidden_size
    return {"mlp_ratio": int(ratio) if ratio.is_integer() else ratio, "use_swiglu_ffn": False}


def infer_swiglu(state_dict: StateDict, hidden_size: int) -> dict:
    """Returns a ratio and a multiple of which the width of SwiGLU comes out; those of the originals are preferred."""
    width = state_dict["backbone.blocks.0.mlp.w1.weight"].shape[0]
    for ratio, multiple in (*SWIGLU_WIDTHS, ((1.5 * width + 0.75) / hidden_size, 1)):
        if swiglu_width(hidden_size, ratio, multiple) == width:
            break
    return {"mlp_ratio": ratio, "swiglu_multiple": multiple, "use_swiglu_ffn": True}


def swiglu_width(hidden_size: int, ratio: float, multiple: int) -> int:
    """Returns the width of SwiGLU: 2/3 of that of an MLP, rounded up to a multiple."""
    return -(-int(int(hidden_size * ratio) * 2 / 3) // multiple) * multiple


def infer_periods(periods: torch.Tensor | None) -> dict:
    """Returns the base of the periods of rotary positions, or the least and the greatest; nothing without periods."""
    if periods is None or len(periods) < 2:
        return {"rope_theta": PUBLISHED_ROPE_THETA} if periods is not None else {}
    least, greatest = periods[0].item(), periods[-1].item()
    if abs(least - 1) > ROUNDED:
        return {"rope_min_period": least, "rope_max_period": greatest}
    theta = greatest ** (len(periods) / (len(periods) - 1))
    is_published = abs(theta / PUBLISHED_ROPE_THETA - 1) < ROUNDED
    return {"rope_theta": PUBLISHED_ROPE_THETA if is_published else float(f"{theta:.4g}")}


def infer_xcit(state_dict: StateDict) -> dict:
    """Returns the arguments of `DinoConfig` that an XCiT's tensors tell."""
    needed = ("cls_token", "blocks.0.mlp.fc1.weight", "blocks.0.attn.temperature", "blocks.0.attn.qkv.weight")
    if missing := [name for name in needed if f"backbone.{name}" not in state_dict]:
        raise ValueError(f"an XCiT without {', '.join(missing)}")
    hidden_size = state_dict["backbone.cls_token"].shape[-1]
    depth = count(state_dict, r"backbone\.blocks\.(\d+)\.")
    num_convolutions = count(state_dict, r"backbone\.patch_embed\.proj\.(\d+)\.0\.")
    sizes = XCIT_SIZES.items()
    name = min(sizes, key=lambda item: (abs(item[1][0] - hidden_size), abs(item[1][1] - depth)))[0]
    return {
        "backbone": name,
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": state_dict["backbone.blocks.0.attn.temperature"].shape[0],
        "num_class_attention_layers": max(1, count(state_dict, r"backbone\.cls_attn_blocks\.(\d+)\.")),
        "tokens_norm": hidden_size != XCIT_SIZES["xcit_nano_12"][0],  # no tensor tells it, but all others have it
        "num_channels": state_dict["backbone.patch_embed.proj.0.0.weight"].shape[1],
        "patch_size": 2**num_convolutions,
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in state_dict,
        **infer_mlp(state_dict, hidden_size),
    }


def infer_convnext(state_dict: StateDict) -> dict:
    """Returns the arguments of `DinoConfig` that a ConvNeXt's tensors tell."""
    depths, hidden_sizes = [], []
    while blocks := count(state_dict, rf"backbone\.stages\.{len(depths)}\.(\d+)\."):
        gamma = state_dict.get(f"backbone.stages.{len(depths)}.0.gamma")
        if gamma is None:
            raise ValueError(f"a ConvNeXt without stages.{len(depths)}.0.gamma")
        depths.append(blocks)
        hidden_sizes.append(gamma.shape[0])
    if not depths:
        raise ValueError("a ConvNeXt without blocks")

    def distance(name: str) -> tuple:
        blocks, widths = CONVNEXT_SIZES[name]
        return abs(widths[-1] - hidden_sizes[-1]), abs(sum(blocks) - sum(depths))

    return {
        "backbone": min(CONVNEXT_SIZES, key=distance),
        "depths": depths,
        "hidden_sizes": hidden_sizes,
        "num_channels": state_dict["backbone.downsample_layers.0.0.weight"].shape[1],
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
    return infer_one_head({n.removeprefix("head."): t for n, t in state_dict.items() if n.startswith("head.")})


def infer_patch_head(state_dict: StateDict) -> dict:
    """Returns the arguments of `DinoConfig` that the tensors of the patches' own head tell."""
    prefix = "patch_head."
    head = infer_one_head({n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)})
    if head["head_type"] is None:
        return {}
    of_its_own = ("projection_dim", "head_hidden_dim", "head_bottleneck_dim", "head_num_layers")
    values = {f"patch_{name}" if name in of_its_own else name: value for name, value in head.items()}
    return {**values, "head_type": None, "patch_head": True}


def infer_one_head(head: StateDict) -> dict:
    """Returns the arguments of `DinoConfig` that the tensors of a head tell, whose prefix is left out."""
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
        "head_bias": linears[0].replace("weight", "bias") in head,
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
