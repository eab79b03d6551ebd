# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the original, https://github.com/facebookresearch/dino: whole training runs, and bare backbones.

Its names are ours, but for prefixes; so the tables are of what else there is.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from conversion_scripts.checkpoint import Checkpoint, Export, is_state_dict, rename
from conversion_scripts.sizes import check_state_dict, infer_config
from modeling_dino.configuration_dino import DinoConfig, canonical_backbone
from modeling_dino.modeling_dino import backbone_class


KEYS = [  # ours, theirs; PyTorch's newer weight norm has other names
    ("head.last_layer.weight_g", "head.last_layer.parametrizations.weight.original0"),
    ("head.last_layer.weight_v", "head.last_layer.parametrizations.weight.original1"),
]
NETWORKS = ("teacher", "student")
CARRIED = ("args", "epoch", "dino_loss")  # what pretraining goes on from, beside the weights
# the arguments of a run that the tensors tell as well -> of DinoConfig
ARGUMENTS = {
    "patch_size": "patch_size",
    "out_dim": "projection_dim",
    "use_bn_in_head": "head_use_bn",
    "norm_last_layer": "norm_last_layer",
}


@dataclass(frozen=True)
class Networks:
    """Which networks a file has: by name, or the bare backbone alone."""

    by_name: dict[str, dict[str, torch.Tensor]]
    bare: dict[str, torch.Tensor] | None


def networks_of(checkpoint: Checkpoint) -> Networks:
    """The state dicts in a file."""
    by_name = {name: checkpoint.contents[name] for name in NETWORKS if is_state_dict(checkpoint.contents.get(name))}
    return Networks(by_name, checkpoint.contents if is_state_dict(checkpoint.contents) else None)


def without_prefixes(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names: without `module.` of distributed training; a bare backbone under `backbone.`."""
    state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if not any(name.startswith("backbone.") for name in state_dict):
        state_dict = {f"backbone.{name}": tensor for name, tensor in state_dict.items()}
    return rename(state_dict, KEYS, inverse=True)


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it is a training run's file, or a ViT's bare state dict in the original's names."""
    networks = networks_of(checkpoint)
    if networks.by_name:
        return True
    return networks.bare is not None and any(
        name.endswith(("patch_embed.proj.weight", "backbone.conv1.weight")) for name in networks.bare
    )


def to_dino(
    checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
) -> tuple[DinoConfig, dict[str, torch.Tensor]]:
    """
    Args:
        which: `"teacher"` or `"student"` of a full checkpoint.
        num_heads: where neither the width nor the arguments of the run tell.

    Raises:
        ValueError: if the network is not there, is not a whole DINO, or its heads cannot be told.
    """
    networks = networks_of(checkpoint)
    if networks.by_name and which not in networks.by_name:
        raise ValueError(f"{checkpoint.source} has no {which}, only a {' and a '.join(networks.by_name)}")
    state_dict = without_prefixes(networks.by_name.get(which) or networks.bare)
    args = args_of(checkpoint)
    num_heads = num_heads or (args["num_heads"] if isinstance(args.get("num_heads"), int) else None)
    config = infer_config(state_dict, num_heads, **known_from(args, state_dict))
    check_state_dict(config, state_dict)
    checkpoint.notes += contradictions(args, config)
    if networks.by_name:
        left_out = [name for name in checkpoint.contents if name not in (which, *CARRIED)]
        checkpoint.notes += [f"left out: {', '.join(left_out)}"] * bool(left_out)
    return config, state_dict


def args_of(checkpoint: Checkpoint) -> dict:
    """The arguments of the run, as JSON knows them; none if the file has none."""
    args = checkpoint.contents.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return {str(name): as_json(value) for name, value in args.items()} if isinstance(args, Mapping) else {}


def known_from(args: dict, state_dict: dict[str, torch.Tensor]) -> dict:
    """What the arguments tell and no tensor does: whether a gain that is 1 is frozen."""
    gain = state_dict.get("head.last_layer.weight_g")
    if gain is not None and bool((gain == 1).all()) and isinstance(args.get("norm_last_layer"), bool):
        return {"norm_last_layer": args["norm_last_layer"]}
    return {}


def contradictions(args: dict, config: DinoConfig) -> list[str]:
    """Where the arguments of the run say something else than the tensors, which are right."""
    notes = []
    for argument, name in ARGUMENTS.items():
        has_value = backbone_class(config).has_patch_tokens if name == "patch_size" else config.head_type is not None
        if argument in args and has_value and args[argument] != getattr(config, name):
            notes.append(f"args have {argument}={args[argument]}, but the tensors {getattr(config, name)}")
    try:
        arch = canonical_backbone(args["arch"])
    except (KeyError, ValueError):
        return notes
    named = DinoConfig(backbone=arch)
    if backbone_class(named) is not backbone_class(config) or named.hidden_size != config.hidden_size:
        notes.append(
            f"args have arch={args['arch']} ({named.hidden_size} wide), but the tensors are {config.hidden_size} wide"
        )
    return notes


def training_state(checkpoint: Checkpoint) -> dict:
    """What of a training run goes along: its arguments, epoch and the loss's center."""
    if not networks_of(checkpoint).by_name:
        return {}
    loss = checkpoint.contents.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else None
    return {
        "args": args_of(checkpoint),
        "epoch": as_json(checkpoint.contents.get("epoch")),
        "center": center if isinstance(center, torch.Tensor) else None,
    }


def as_json(value: object) -> object:
    """Numbers of numpy as Python's; what JSON does not know as text."""
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        value = value.item()
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else str(value)


def from_dino(config: DinoConfig, state_dict: dict[str, torch.Tensor]) -> Export:
    """With a head, a file with the network as `teacher`; without, the bare backbone. The original loads both."""
    if config.head_type == "dino":
        return Export({"teacher": state_dict})
    notes = [] if config.head_type is None else [f"left out: the {config.head_type} head, which the original has not"]
    backbone = {n.removeprefix("backbone."): t for n, t in state_dict.items() if n.startswith("backbone.")}
    return Export(backbone, notes=notes)
