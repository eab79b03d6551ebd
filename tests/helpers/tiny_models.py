# SPDX-License-Identifier: Apache-2.0
"""Small configurations of each kind of backbone."""

from modeling_dino import DinoConfig


TINY_HEAD = {"projection_dim": 24, "head_hidden_dim": 20, "head_bottleneck_dim": 12}
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
OF_DINOV2 = {"num_register_tokens": 3, "use_swiglu_ffn": True, "layerscale_value": 0.5, "use_mask_token": True}
OF_DINOV3 = {"num_register_tokens": 2, "rope_theta": 100.0, "key_bias": False, "layerscale_value": 0.5}
OF_DINOV3 |= {"layer_norm_eps": 1e-5, "untie_cls_and_patch_norms": True, "use_mask_token": True}
TINY_BACKBONES = {
    "vit": {"backbone": "vit_tiny", **TRANSFORMER},
    "resnet": {"backbone": "resnet50", "hidden_size": 64, "depths": [1, 2, 1, 1], "image_size": 32},
}
LATER_BACKBONES = {
    "dinov2": {"backbone": "vit_tiny", **TRANSFORMER, **OF_DINOV2},
    "dinov3": {"backbone": "vit_tiny", **TRANSFORMER, **OF_DINOV3},
    "convnext": {
        "backbone": "convnext_tiny",
        "hidden_sizes": [8, 12, 16, 24],
        "depths": [1, 2, 1, 1],
        "image_size": 32,
    },
    "xcit": {"backbone": "xcit_tiny_12", **TRANSFORMER},
}
ALL_BACKBONES = {**TINY_BACKBONES, **LATER_BACKBONES}


def tiny_config(family: str = "vit", **overrides) -> DinoConfig:
    """A small configuration of a family, with the dino head unless told otherwise."""
    return DinoConfig(**{**ALL_BACKBONES[family], **TINY_HEAD, **overrides})


def shallow_config(family: str, num_layers: int = 1, **overrides) -> DinoConfig:
    """One layer of a family, or a few: what a compiler does with it, it does with more of them."""
    layers = {"num_hidden_layers": num_layers} if "depths" not in ALL_BACKBONES[family] else {"depths": [1, 1]}
    widths = {"hidden_sizes": [8, 12]} if family == "convnext" else {}
    return tiny_config(family, **layers, **widths, **overrides)
