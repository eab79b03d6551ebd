# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the original of DINOv2, https://github.com/facebookresearch/dinov2: backbones, and teachers of runs.

The `…_pretrain.pth` of a published backbone is a bare state dict; the `teacher_checkpoint.pth` that a run's evaluation
writes has the heads besides. What is written has its blocks in one piece (`block_chunks=0`).
"""

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, rename, split_tensors
from conversion_scripts.checkpoint_format import GATE_VALUE, OF_DINOV2, VIT_OF_DINO
from conversion_scripts.original import Original, names_in, with_backbone_prefix
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs
    ("head.{p}", "dino_head.{p}"),
    ("patch_head.{p}", "ibot_head.{p}"),
]
# the same where the blocks were kept in chunks: the number of a block is that in the whole network
CHUNKS = [("backbone.blocks.{i}.{p}", "backbone.blocks.{j}.{i}.{p}")]


class OriginalDinov2(Original):
    library = "the original of DINOv2"
    origin = "DINOv2's original"
    families = ("dinov2",)
    needed = VIT_OF_DINO
    keys = KEYS
    weight_norm = True
    holds_patch_heads = True
    fixed = {"layer_norm_eps": 1e-6}

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Goes by the names of its heads, of its layer scales, and of what else DINO's backbones do not have."""
        names = names_in(checkpoint)
        is_vit = "patch_embed.proj.weight" in names and "pos_embed" in names
        own = ("dino_head.", "ibot_head.", "register_tokens")
        return is_vit and any(name.startswith(own) or ".ls1." in name or ".mlp.w12." in name for name in names)

    def ambiguities(self, checkpoint: Checkpoint, config: DinoConfig) -> list[str]:
        return []

    def fixed_options(self, state_dict: StateDict) -> dict:
        """Positions are interpolated as in DINO without registers, and antialiased with them."""
        method = "antialias" if "backbone.register_tokens" in state_dict else "dino"
        return {**super().fixed_options(state_dict), "position_interpolation": method}

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        return dict(OF_DINOV2)

    def to_our_names(self, theirs: StateDict) -> StateDict:
        theirs = rename(with_backbone_prefix(theirs), CHUNKS, inverse=True)
        return super().to_our_names(rename(split_tensors(theirs, ".mlp.w12.", GATE_VALUE), self.keys, inverse=True))

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        return super().to_their_names(join_tensors(ours, ".mlp.w12.", GATE_VALUE), config)
