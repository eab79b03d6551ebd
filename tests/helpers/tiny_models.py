# SPDX-License-Identifier: Apache-2.0
"""Small configurations of each kind of backbone."""

from modeling_dino import DinoConfig


TINY_HEAD = {"projection_dim": 24, "head_hidden_dim": 20, "head_bottleneck_dim": 12}
TINY_BACKBONES = {
    "vit": {
        "backbone": "vit_tiny",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": 32,
    },
    "resnet": {"backbone": "resnet50", "hidden_size": 64, "depths": [1, 2, 1, 1], "image_size": 32},
}


def tiny_config(family: str = "vit", **overrides) -> DinoConfig:
    """A small configuration of either family, with the dino head unless told otherwise."""
    return DinoConfig(**{**TINY_BACKBONES[family], **TINY_HEAD, **overrides})


def shallow_config(family: str, **overrides) -> DinoConfig:
    """One layer of either family: what a compiler does with it, it does with more of them."""
    layers = {"num_hidden_layers": 1} if family == "vit" else {"depths": [1, 1]}
    return tiny_config(family, **layers, **overrides)
