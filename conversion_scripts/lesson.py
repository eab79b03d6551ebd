# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the lesson: a course's own small implementation of DINO, from which this project started.

A file holds its state dict under `"model_state_dict"`, or is the state dict. LayerNorm eps is 1e-5.
"""

from conversion_scripts.checkpoint import Checkpoint, StateDict, is_state_dict
from conversion_scripts.checkpoint_format import VIT_OF_DINO, CheckpointFormat
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs
    ("backbone.patch_embed.proj.{p}", "backbone.patch_embed.projection.{p}"),
    ("backbone.blocks.{i}.mlp.fc1.{p}", "backbone.blocks.{i}.mlp.0.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}", "backbone.blocks.{i}.mlp.3.{p}"),
    ("head.{p}", "projection_head.{p}"),
]
# names that only the lesson has
ITS_NAMES = ("projection_head.", "backbone.patch_embed.projection.")


class Lesson(CheckpointFormat):
    library = "the lesson"
    origin = "the lesson's"
    families = ("vit", "resnet")
    needed = VIT_OF_DINO
    keys = KEYS
    prefixes = ("module.",)
    carried = ("model_state_dict",)
    head_types = ("dino", "simple")
    fixed = {"layer_norm_eps": 1e-5}

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Returns whether the file has the lesson's entry, or names that only the lesson has."""
        beginnings = ("backbone.",) if "model_state_dict" in checkpoint.contents else ITS_NAMES
        state_dict = self.network_of(checkpoint, "")
        return is_state_dict(state_dict) and any(
            self.without_prefix(name).startswith(beginnings) for name in state_dict
        )

    def network_of(self, checkpoint: Checkpoint, which: str) -> StateDict:
        return checkpoint.contents.get("model_state_dict", checkpoint.contents)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        return Checkpoint({"model_state_dict": tensors})
