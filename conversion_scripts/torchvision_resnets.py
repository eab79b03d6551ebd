# SPDX-License-Identifier: Apache-2.0
"""State dicts of torchvision's ResNets, with or without `fc`; the published DINO ResNet-50 backbone is one."""

import torch

from conversion_scripts.checkpoint import Checkpoint, Export, is_state_dict, rename
from conversion_scripts.sizes import check_state_dict, infer_config
from modeling_dino.configuration_dino import DinoConfig


KEYS = [("backbone.{p}", "{p}")]  # ours, theirs
CLASSIFIER = ("fc.weight", "fc.bias")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it is a bare ResNet."""
    return is_state_dict(checkpoint.contents) and {"conv1.weight", "layer1.0.conv1.weight"} <= set(checkpoint.contents)


def to_dino(
    checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
) -> tuple[DinoConfig, dict[str, torch.Tensor]]:
    """
    Args:
        which, num_heads: unused; there is one network, without attention.

    Raises:
        ValueError: if it is not a whole ResNet.
    """
    backbone = {name: tensor for name, tensor in checkpoint.contents.items() if name not in CLASSIFIER}
    checkpoint.notes += ["left out: fc, the classifier"] * (len(backbone) < len(checkpoint.contents))
    state_dict = rename(backbone, KEYS, inverse=True)
    config = infer_config(state_dict)
    check_state_dict(config, state_dict)
    return config, state_dict


def reference(checkpoint: Checkpoint):
    """The checkpoint as torchvision's own model: images -> features; raises ImportError where it is not installed."""
    from importlib import import_module

    config, _ = to_dino(checkpoint)
    model = import_module("torchvision").models.get_model(config.backbone)
    model.fc = torch.nn.Identity()
    model.load_state_dict({name: t for name, t in checkpoint.contents.items() if name not in CLASSIFIER})
    return model.eval().to(checkpoint.contents["conv1.weight"].dtype)


def from_dino(config: DinoConfig, state_dict: dict[str, torch.Tensor]) -> Export:
    """
    A bare state dict, which torchvision's models take once their `fc` is an `Identity`.

    Raises:
        ValueError: if it is not a ResNet.
    """
    if "backbone.conv1.weight" not in state_dict:
        raise ValueError(f"torchvision's format is for ResNets, not for {config.backbone}")
    backbone = {name: tensor for name, tensor in state_dict.items() if name.startswith("backbone.")}
    notes = [] if config.head_type is None else ["left out: the projection head, which torchvision has not"]
    return Export(rename(backbone, KEYS), notes=notes)
