# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the original of DINOv3, https://github.com/facebookresearch/dinov3: backbones, and teachers of runs.

The published files are bare state dicts of ViTs and ConvNeXts; the `teacher_checkpoint.pth` that a run's evaluation
writes has the heads besides.
"""

import os

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, rename
from conversion_scripts.checkpoint_format import CONVNEXT_STAGES, IMAGES_OF_SAT, OF_DINOV3, family_of
from conversion_scripts.original import Original, names_in, with_backbone_prefix
from conversion_scripts.original_dinov2 import KEYS as HEADS
from modeling_dino.configuration_dino import DinoConfig


KEYS = [*HEADS, ("backbone.register_tokens", "backbone.storage_tokens")]  # ours, theirs
# a buffer by which the bias of query, key and value is multiplied: 1, 0 and 1
BIAS_MASK = ".attn.qkv.bias_mask"
# the final norm, which a ConvNeXt has once more among the norms of its stages
LAST_NORM = "backbone.norm."


class OriginalDinov3(Original):
    library = "the original of DINOv3"
    origin = "DINOv3's original"
    license = "dinov3-license"
    families = ("dinov3", "convnext")
    keys = KEYS
    weight_norm = False
    holds_patch_heads = True
    fixed = {"layer_norm_eps": 1e-5}  # of its ViTs

    def needed_of(self, config: DinoConfig) -> dict:
        return CONVNEXT_STAGES if family_of(config) == "convnext" else {}

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Goes by rotary positions, storage tokens, or the layers of a ConvNeXt."""
        names = names_in(checkpoint)
        return not names.isdisjoint({"rope_embed.periods", "storage_tokens", "downsample_layers.0.0.weight"})

    def ambiguities(self, checkpoint: Checkpoint, config: DinoConfig) -> list[str]:
        """A file of this project has the names of registers, and no mask that tells of the bias of the keys."""
        if not has_our_names(checkpoint):
            return []
        return [
            f"taken for a DINOv3 with key_bias={config.key_bias} and layer_norm_eps={config.layer_norm_eps}, as all "
            "published ones are: the names are this project's, and no config.json is beside the file to tell"
        ]

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        """Coordinates were rescaled in the training of all its ViTs; a mask is on the bias of the keys of most."""
        settings = {**OF_DINOV3, **(IMAGES_OF_SAT if "sat493m" in os.path.basename(checkpoint.source) else {})}
        settings["head_weight_norm"] = any(name.endswith(".last_layer.weight_v") for name in state_dict)
        if "backbone.cls_token" not in state_dict:
            return settings
        has_mask = has_our_names(checkpoint) or any(name.endswith(BIAS_MASK) for name in names_in(checkpoint))
        has_bias = "backbone.blocks.0.attn.qkv.bias" in state_dict
        return {**settings, "pos_embed_rescale": 2.0, "key_bias": has_bias and not has_mask}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        theirs = with_backbone_prefix(theirs)
        for name, tensor in theirs.items():
            if name.endswith(BIAS_MASK) and not torch.equal(tensor, bias_mask(tensor)):
                raise ValueError(f"{name} does not hold ones for query and value and zeros for the key")
        kept = {
            name: tensor
            for name, tensor in theirs.items()
            if not name.endswith(BIAS_MASK) and not name.startswith("backbone.norms.")
        }
        return super().to_our_names(rename(kept, self.keys, inverse=True))

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        theirs = super().to_their_names(ours, config)
        if config.qkv_bias and not config.key_bias:
            biases = {name: tensor for name, tensor in ours.items() if name.endswith(".attn.qkv.bias")}
            theirs |= {f"{name}_mask": bias_mask(tensor) for name, tensor in biases.items()}
        if "backbone.cls_token" not in ours:
            last = f"backbone.norms.{len(config.depths) - 1}."
            theirs |= {n.replace(LAST_NORM, last): t for n, t in ours.items() if n.startswith(LAST_NORM)}
        return theirs


def has_our_names(checkpoint: Checkpoint) -> bool:
    """Returns whether storage tokens are called registers, as in this project."""
    return "register_tokens" in names_in(checkpoint)


def bias_mask(bias: torch.Tensor) -> torch.Tensor:
    """Returns the mask of the bias of query, key and value, (3 * D,)."""
    mask = torch.ones_like(bias)
    mask.chunk(3)[1].zero_()
    return mask
