# SPDX-License-Identifier: Apache-2.0
"""State dicts of torchvision's ResNets, with or without `fc`; the published DINO ResNet-50 backbone is one.

torchvision's models take what is written, without a classifier once their `fc` is an `Identity`.
"""

import torch

from conversion_scripts.checkpoint import Checkpoint, is_state_dict
from conversion_scripts.checkpoint_format import CheckpointFormat
from modeling_dino.configuration_dino import DinoConfig


KEYS = [("backbone.{p}", "{p}")]  # ours, theirs


class TorchvisionResNets(CheckpointFormat):
    library = "torchvision"
    origin = "torchvision's ResNet"
    families = ("resnet",)
    keys = KEYS
    not_dinos = ("fc.weight", "fc.bias")
    classifiers = {"resnet": "fc."}

    def matches(self, checkpoint: Checkpoint) -> bool:
        contents = checkpoint.contents
        return is_state_dict(contents) and {"conv1.weight", "layer1.0.conv1.weight"} <= set(contents)

    def reference(self, checkpoint: Checkpoint, config: DinoConfig) -> torch.nn.Module:
        from torchvision.models import get_model

        model = get_model(config.backbone)
        model.fc = torch.nn.Identity()
        model.load_state_dict(self.tensors_of(checkpoint))
        return model.eval().to(checkpoint.contents["conv1.weight"].dtype)
