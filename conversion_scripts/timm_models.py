# SPDX-License-Identifier: Apache-2.0
"""timm's ViTs and ResNets: hub folders, and files of `timm.create_model(…).state_dict()`; no head."""

import re

from conversion_scripts.checkpoint import Checkpoint, StateDict
from conversion_scripts.checkpoint_format import VIT_OF_DINO, family_of
from conversion_scripts.timm_folder import SIZES, TimmFormat
from modeling_dino.configuration_dino import RESNET_DEPTHS, VIT_SIZES, DinoConfig


KEYS = [("backbone.{p}", "{p}")]  # ours, theirs
VIT_NAME = re.compile(r"(?:vit|deit)_(tiny|small|base|large)_patch(\d+)_(\d+)")
# timm's names with the sizes they stand for; other sizes go by arguments
VIT_NAMES = {f"vit_{name}_224" for name in ("tiny_patch16", "small_patch16", "small_patch8", "base_patch16")}
VIT_NAMES |= {f"vit_{name}_224" for name in ("base_patch8", "large_patch16", "large_patch14")}
VIT_ARGUMENTS = {"img_size": "image_size", **SIZES}  # of `timm.create_model` -> of DinoConfig


class TimmModels(TimmFormat):
    families = ("vit", "resnet")
    needed = VIT_OF_DINO
    keys = KEYS
    not_dinos = ("head.weight", "head.bias", "fc.weight", "fc.bias")
    classifiers = {"vit": "head.", "resnet": "fc."}
    fixed = {"position_interpolation": "antialias", "layer_norm_eps": 1e-6}

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Goes by a folder's configuration, or a ViT's classifier, which bare state dicts of the original lack."""
        if not {"architecture", "pretrained_cfg"}.isdisjoint(checkpoint.config or {}):
            return True
        return super().matches(checkpoint)

    def fits(self, names: set[str]) -> bool:
        return {"patch_embed.proj.weight", "head.weight"} <= names

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        name = VIT_NAME.match(str((checkpoint.config or {}).get("architecture", "")))
        num_heads = self.model_args_of(checkpoint).get("num_heads")
        return {"num_heads": num_heads or (VIT_SIZES[f"vit_{name[1]}"][2] if name else None)}

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        if family_of(config) == "vit":
            name = f"{config.backbone}_patch{config.patch_size}_{config.image_size}"
            architecture = name if name in VIT_NAMES else f"{config.backbone}_patch16_224"
            if config.backbone not in ("vit_tiny", "vit_small", "vit_base", "vit_large"):
                architecture = "vit_small_patch16_224"
            model_args = {theirs: getattr(config, ours) for theirs, ours in VIT_ARGUMENTS.items()}
            return self.packed(architecture, model_args, config, tensors)
        if config.depths != list(RESNET_DEPTHS[config.backbone]) or config.resnet_width != 64:
            sizes = f"depths {config.depths} and width {config.resnet_width}"
            raise ValueError(f"timm has no {config.backbone} of {sizes}")
        if config.uses_cifar_stem:
            raise ValueError("timm's ResNets have no stem for small images")
        return self.packed(config.backbone, {}, config, tensors)
