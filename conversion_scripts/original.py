# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the original, https://github.com/facebookresearch/dino: whole training runs, and bare backbones.

Its names are ours, but for prefixes; so the tables are of what else there is. XCiTs are among its backbones.
"""

import argparse
from collections.abc import Mapping

import numpy as np
import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, is_state_dict, rename
from conversion_scripts.checkpoint_format import VIT_OF_DINO, CheckpointFormat, family_of
from modeling_dino.checkpoint_files import NETWORKS
from modeling_dino.configuration_dino import DinoConfig, canonical_backbone
from modeling_dino.modeling_dino import backbone_class


NEWER_WEIGHT_NORM = [  # ours, and what a newer PyTorch calls the same
    ("head.last_layer.weight_g", "head.last_layer.parametrizations.weight.original0"),
    ("head.last_layer.weight_v", "head.last_layer.parametrizations.weight.original1"),
]
RUN_STATE = {"args", "epoch", "dino_loss", "optimizer"}  # of which the file of a run has some
# the arguments of a run that the tensors tell as well -> of DinoConfig
ARGUMENTS = {
    "patch_size": "patch_size",
    "out_dim": "projection_dim",
    "use_bn_in_head": "head_use_bn",
    "norm_last_layer": "norm_last_layer",
}


class Original(CheckpointFormat):
    library = "the original"
    origin = "the original's"
    families = ("vit", "resnet", "xcit")
    needed = VIT_OF_DINO
    keys = []
    no_place = ()
    prefixes = ("module.",)  # of distributed training
    carried = ("args", "epoch", "dino_loss")
    head_types = ("dino",)
    weight_norm: bool | None = None  # whether the last layers of its heads are weight-normed; None: some are

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Returns whether a checkpoint is a run's file, or a bare state dict with a ViT or ResNet under its names."""
        if networks_of_run(checkpoint):
            return True
        return is_state_dict(checkpoint.contents) and any(
            name.endswith(("patch_embed.proj.weight", "patch_embed.proj.0.0.weight", "backbone.conv1.weight"))
            for name in checkpoint.contents
        )

    def ambiguities(self, checkpoint: Checkpoint, config: DinoConfig) -> list[str]:
        """timm's ViTs without a classifier have the names of the original's bare backbones."""
        if "patch_embed.proj.weight" not in checkpoint.contents:
            return []
        return [
            "taken for the original's, but timm's models without a classifier have the same names: pass --from timm if"
            f" it is one of them, which differ a little on images that are not {config.image_size} px"
        ]

    def network_of(self, checkpoint: Checkpoint, which: str) -> StateDict:
        networks = networks_of_run(checkpoint)
        if networks and which not in networks:
            raise ValueError(f"{checkpoint.source} has no {which}, only a {' and a '.join(networks)}")
        return networks[which] if networks else checkpoint.contents

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        args = args_of(checkpoint)
        settings = {"num_heads": args["num_heads"]} if isinstance(args.get("num_heads"), int) else {}
        gain = state_dict.get("head.last_layer.weight_g")
        # no tensor tells whether a gain that is 1 is frozen
        if gain is not None and bool((gain == 1).all()) and isinstance(args.get("norm_last_layer"), bool):
            settings["norm_last_layer"] = args["norm_last_layer"]
        return settings

    def to_our_names(self, theirs: StateDict) -> StateDict:
        return rename(with_backbone_prefix(theirs), NEWER_WEIGHT_NORM, inverse=True)

    def to_dino(
        self, checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
    ) -> tuple[DinoConfig, StateDict]:
        config, state_dict = super().to_dino(checkpoint, which, num_heads)
        checkpoint.notes += contradictions(args_of(checkpoint), config)
        return config, state_dict

    def without_heads_it_lacks(self, config: DinoConfig, state_dict: StateDict) -> tuple[StateDict, list[str]]:
        has_head = config.head_type == "dino" or config.patch_head
        if has_head and self.weight_norm not in (None, config.head_weight_norm):
            kind = "is not" if self.weight_norm else "is"
            kept = {name: tensor for name, tensor in state_dict.items() if name.startswith("backbone.")}
            return kept, [f"left out: the heads, whose last layer {kind} weight-normed, unlike that of {self.library}"]
        return super().without_heads_it_lacks(config, state_dict)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        """Returns a network with a head as `teacher`, and else the bare backbone; the original loads both."""
        if all(name.startswith("backbone.") for name in tensors):
            return Checkpoint({name.removeprefix("backbone."): tensor for name, tensor in tensors.items()})
        return Checkpoint({"teacher": tensors})


def with_backbone_prefix(tensors: StateDict) -> StateDict:
    """Returns the tensors of a network with a prefix before the names of its backbone, which bare ones lack."""
    is_bare = not any(name.startswith("backbone.") for name in tensors)
    return {f"backbone.{name}": tensor for name, tensor in tensors.items()} if is_bare else tensors


def networks_of_run(checkpoint: Checkpoint) -> dict[str, StateDict]:
    """Returns the state dicts of teacher and student; none of a bare backbone."""
    return {name: checkpoint.contents[name] for name in NETWORKS if is_state_dict(checkpoint.contents.get(name))}


def names_in(checkpoint: Checkpoint) -> set[str]:
    """Returns the names of the tensors of a run's networks, or of a bare backbone."""
    networks = networks_of_run(checkpoint).values() or [checkpoint.contents]
    return {str(name).removeprefix("backbone.") for network in networks for name in network}


def args_of(checkpoint: Checkpoint) -> dict:
    """Returns the arguments of the run, as JSON knows them; none if the file has none."""
    args = checkpoint.contents.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return {str(name): as_json(value) for name, value in args.items()} if isinstance(args, Mapping) else {}


def contradictions(args: dict, config: DinoConfig) -> list[str]:
    """Says where the arguments of the run contradict the tensors, which are right."""
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
    if family_of(named) != family_of(config) or named.hidden_size != config.hidden_size:
        notes.append(
            f"args have arch={args['arch']} ({named.hidden_size} wide), but the tensors are {config.hidden_size} wide"
        )
    return notes


def training_state(checkpoint: Checkpoint) -> dict:
    """Returns the arguments, the epoch and the loss's center of a training run; nothing of a bare backbone."""
    if not networks_of_run(checkpoint) or RUN_STATE.isdisjoint(checkpoint.contents):
        return {}
    loss = checkpoint.contents.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else None
    return {
        "args": args_of(checkpoint),
        "epoch": as_json(checkpoint.contents.get("epoch")),
        "center": center if isinstance(center, torch.Tensor) else None,
    }


def as_json(value: object) -> object:
    """Returns numbers of numpy as Python's, and what JSON does not know as text."""
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        value = value.item()
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else str(value)
