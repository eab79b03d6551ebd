# SPDX-License-Identifier: Apache-2.0
"""timm's ViTs of DINOv2, without and with registers: hub folders, and files of their state dicts; no head.

With registers timm keeps the position of the CLS token within the CLS token, so there it comes back as zeros.
"""

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, rename, split_tensors
from conversion_scripts.checkpoint_format import GATE_VALUE, OF_DINOV2, VIT_OF_DINO
from conversion_scripts.timm_folder import TimmFormat
from conversion_scripts.timm_models import VIT_ARGUMENTS
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs
    ("backbone.register_tokens", "reg_token"),
    ("backbone.{p}", "{p}"),
]
SWIGLU = [  # its names have those of an MLP
    ("backbone.blocks.{i}.mlp.w12.{p}", "backbone.blocks.{i}.mlp.fc1.{p}"),
    ("backbone.blocks.{i}.mlp.w3.{p}", "backbone.blocks.{i}.mlp.fc2.{p}"),
]
CLS, POSITIONS = "backbone.cls_token", "backbone.pos_embed"
NAMES = ("vit_small", "vit_base", "vit_large", "vit_giant")  # timm's, of which the last has SwiGLU


class TimmDinov2(TimmFormat):
    families = ("dinov2",)
    needed = VIT_OF_DINO
    keys = KEYS
    prefixes = ("backbone.",)
    not_dinos = ("head.weight", "head.bias")
    classifiers = {"dinov2": "head."}
    fixed = {"position_interpolation": "antialias", "layer_norm_eps": 1e-6}

    def fits(self, names: set[str]) -> bool:
        """Goes by layer scales and registers, and by the mask token, which all files of the original have."""
        is_vit = {"patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight"} <= names
        is_original = not names.isdisjoint({"mask_token", "register_tokens"})
        return is_vit and not is_original and not names.isdisjoint({"blocks.0.ls1.gamma", "reg_token"})

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        return {"num_heads": self.model_args_of(checkpoint).get("num_heads"), **OF_DINOV2}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        ours = super().to_our_names(theirs)
        fc1, fc2 = (ours.get(f"backbone.blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
        if fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[-1]:
            ours = split_tensors(rename(ours, SWIGLU, inverse=True), ".mlp.w12.", GATE_VALUE)
        positions = ours.get(POSITIONS)
        if positions is not None and round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:
            ours[POSITIONS] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        return ours

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        theirs = rename(join_tensors(ours, ".mlp.w12.", GATE_VALUE), SWIGLU)
        if config.num_register_tokens:
            theirs[CLS] = ours[CLS] + ours[POSITIONS][:, :1]
            theirs[POSITIONS] = ours[POSITIONS][:, 1:]
        return super().to_their_names(theirs, config)

    def losses(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        if not config.num_register_tokens or not state_dict[POSITIONS][:, 0].any():
            return []
        return ["the position of the CLS token is added to the CLS token, where timm keeps it"]

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        name = config.backbone if config.backbone in NAMES else NAMES[0]
        name = NAMES[-1] if config.use_swiglu_ffn else name
        model_args = {theirs: getattr(config, ours) for theirs, ours in VIT_ARGUMENTS.items()}
        model_args["init_values"] = config.layerscale_value
        if config.use_swiglu_ffn:  # the half keeps the product from rounding down
            model_args["mlp_ratio"] = (2 * config.feed_forward_width + 0.5) / config.hidden_size
        if not config.num_register_tokens:
            return self.packed(f"{name}_patch14_dinov2", model_args, config, tensors)
        model_args["reg_tokens"] = config.num_register_tokens
        return self.packed(f"{name}_patch14_reg4_dinov2", model_args, config, tensors)
