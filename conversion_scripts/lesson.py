# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a lesson's own DINO: `{"model_state_dict": …}` or bare; LayerNorm eps 1e-5."""

import torch

from conversion_scripts.checkpoint import Checkpoint, Export, is_state_dict, rename
from conversion_scripts.sizes import check_state_dict, infer_config
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs
    ("backbone.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    ("backbone.blocks.{i}.mlp.fc1.{p}", "backbone.blocks.{i}.mlp.0.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}", "backbone.blocks.{i}.mlp.3.{p}"),
    ("head.{p}", "projection_head.{p}"),
]
LAYER_NORM_EPS = 1e-5


def state_dict_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The state dict in a file, under its own names; empty if there is none."""
    state_dict = checkpoint.contents.get("model_state_dict", checkpoint.contents)
    if not is_state_dict(state_dict):
        return {}
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def matches(checkpoint: Checkpoint) -> bool:
    """By the names that only the lesson has."""
    names = state_dict_of(checkpoint)
    if "model_state_dict" in checkpoint.contents:
        return any(name.startswith("backbone.") for name in names)
    return any(name.startswith(("projection_head.", "backbone.patch_embed.projection.")) for name in names)


def to_dino(
    checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
) -> tuple[DinoConfig, dict[str, torch.Tensor]]:
    """
    Args:
        which: unused; there is one network.
        num_heads: where the width does not tell.

    Raises:
        ValueError: if it is not a whole DINO, or its heads cannot be told.
    """
    state_dict = rename(state_dict_of(checkpoint), KEYS, inverse=True)
    config = infer_config(state_dict, num_heads, layer_norm_eps=LAYER_NORM_EPS)
    check_state_dict(config, state_dict)
    left_out = [name for name in checkpoint.contents if name != "model_state_dict"]
    if "model_state_dict" in checkpoint.contents and left_out:
        checkpoint.notes.append(f"left out: {', '.join(left_out)}")
    return config, state_dict


def from_dino(config: DinoConfig, state_dict: dict[str, torch.Tensor]) -> Export:
    """`{"model_state_dict": …}`; the lesson's code has its own eps built in, which is said where it differs."""
    notes = []
    if "backbone.norm.weight" in state_dict and config.layer_norm_eps != LAYER_NORM_EPS:
        notes.append(f"layer_norm_eps is {config.layer_norm_eps}, but the lesson's model has {LAYER_NORM_EPS}")
    return Export({"model_state_dict": rename(state_dict, KEYS)}, notes=notes)
