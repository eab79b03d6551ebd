# SPDX-License-Identifier: Apache-2.0
"""timm's ViTs and ResNets: hub folders, and files of `timm.create_model(…).state_dict()`; no head.

The `model.safetensors` of a folder that is written is what `timm.create_model(…, checkpoint_path=…)` takes.
"""

import math
import re

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, is_state_dict
from conversion_scripts.checkpoint_format import VIT_OF_DINO, CheckpointFormat, describe, family_of
from modeling_dino.configuration_dino import RESNET_DEPTHS, VIT_SIZES, DinoConfig
from modeling_dino.image_processing_dino import RESAMPLING, image_processor_config


KEYS = [("backbone.{p}", "{p}")]  # ours, theirs
VIT_NAME = re.compile(r"(?:vit|deit)_(tiny|small|base|large)_patch(\d+)_(\d+)")
# timm's names with the sizes they stand for; other sizes go by arguments
VIT_NAMES = {f"vit_{name}_224" for name in ("tiny_patch16", "small_patch16", "small_patch8", "base_patch16")}
VIT_NAMES |= {f"vit_{name}_224" for name in ("base_patch8", "large_patch16", "large_patch14")}
VIT_ARGUMENTS = {  # of `timm.create_model` -> of DinoConfig
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
}


class TimmModels(CheckpointFormat):
    library = "timm"
    origin = "timm's"
    keys = KEYS
    not_dinos = ("head.weight", "head.bias", "fc.weight", "fc.bias")
    families = ("vit", "resnet")
    needed = VIT_OF_DINO
    classifiers = {"vit": "head.", "resnet": "fc."}
    fixed = {"position_interpolation": "antialias", "layer_norm_eps": 1e-6}

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Goes by a folder's configuration, or a ViT's classifier, which bare state dicts of the original lack."""
        if checkpoint.config is not None:
            return not {"architecture", "pretrained_cfg"}.isdisjoint(checkpoint.config)
        contents = checkpoint.contents
        return is_state_dict(contents) and {"patch_embed.proj.weight", "head.weight"} <= set(contents)

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        settings = checkpoint.config or {}
        name = VIT_NAME.match(str(settings.get("architecture", "")))
        num_heads = (settings.get("model_args") or {}).get("num_heads")
        return {"num_heads": num_heads or (VIT_SIZES[f"vit_{name[1]}"][2] if name else None)}

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        """Names the timm model that a backbone is, with the arguments of `timm.create_model` that it differs by."""
        has_patches = family_of(config) == "vit"
        architecture, model_args = config.backbone, {"in_chans": config.num_channels, "num_classes": 0}
        if has_patches:
            name = f"{config.backbone}_patch{config.patch_size}_{config.image_size}"
            architecture = name if name in VIT_NAMES else f"{config.backbone}_patch16_224"
            model_args |= {theirs: getattr(config, ours) for theirs, ours in VIT_ARGUMENTS.items()}
        elif config.depths != list(RESNET_DEPTHS[config.backbone]) or config.resnet_width != 64:
            sizes = f"depths {config.depths} and width {config.resnet_width}"
            raise ValueError(f"timm has no {config.backbone} of {sizes}")
        elif config.uses_cifar_stem:
            raise ValueError("timm's ResNets have no stem for small images")
        pretrained_cfg = {"num_classes": 0, "first_conv": "patch_embed.proj" if has_patches else "conv1"}
        pretrained_cfg |= to_timm(image_processor_config(config), config.num_channels)
        settings = {"architecture": architecture, "num_classes": 0, "num_features": config.hidden_size}
        return Checkpoint(tensors, {**settings, "model_args": model_args, "pretrained_cfg": pretrained_cfg})

    def add_classifier(self, packed: Checkpoint, config: DinoConfig):
        for place in (packed.config, packed.config["model_args"], packed.config["pretrained_cfg"]):
            place["num_classes"] = config.num_labels
        packed.config["label_names"] = [config.id2label[i] for i in sorted(config.id2label)]
        packed.config["pretrained_cfg"]["classifier"] = self.classifiers[family_of(config)].removesuffix(".")

    def add_image_transform(self, packed: Checkpoint, transform: dict, config: DinoConfig) -> list[str]:
        try:
            packed.config["pretrained_cfg"] |= to_timm(transform, config.num_channels)
        except ValueError as error:
            return [f"left out: the image transform, which timm cannot do ({error}): {describe(transform)}"]
        return []

    def reference(self, checkpoint: Checkpoint, config: DinoConfig) -> torch.nn.Module:
        from timm import create_model

        settings = checkpoint.config or {}
        if "architecture" not in settings:
            raise ValueError("a bare state dict does not name its timm model: verify from a folder")
        model_args = {**(settings.get("model_args") or {}), "num_classes": 0}
        model = create_model(settings["architecture"], **model_args).eval()
        backbone = self.tensors_of(checkpoint)
        model.load_state_dict(backbone)
        return model.to(next(iter(backbone.values())).dtype)


def to_timm(transform: dict, num_channels: int) -> dict:
    """
    Returns an image transform as fields of timm's `pretrained_cfg`; raises ValueError if timm cannot do the same.

    https://github.com/huggingface/pytorch-image-models/blob/v1.0.31/timm/data/transforms_factory.py#L273
    """
    if transform.get("image_processor_type") != "BitImageProcessor" or not transform["do_resize"]:
        raise ValueError("it does not only resize, crop and normalise")
    size, is_squashed = transform["size"], "height" in transform["size"]
    resized = (size["height"], size["width"]) if is_squashed else (size.get("shortest_edge"),) * 2
    if transform["do_center_crop"]:
        crop = transform["crop_size"]["height"], transform["crop_size"]["width"]
    else:
        crop = resized if is_squashed else (None, None)
    if None in (*resized, *crop) or "longest_edge" in size:
        raise ValueError("its images are of different sizes")
    if crop[0] > resized[0] or crop[1] > resized[1] or not (is_squashed or crop[0] == crop[1]):
        raise ValueError("it crops more than there is, or no square")
    scale = 255 * transform["rescale_factor"] if transform["do_rescale"] else 255
    is_normalised = transform["do_normalize"]
    mean = transform["image_mean"] if is_normalised else [0.0] * num_channels
    std = transform["image_std"] if is_normalised else [1.0] * num_channels
    return {
        "input_size": [num_channels, *crop],
        "interpolation": RESAMPLING[transform["resample"]],
        "crop_pct": crop_share(crop, resized),
        "crop_mode": "squash" if is_squashed else "center",
        "mean": mean if scale == 1 else [value / scale for value in mean],
        "std": std if scale == 1 else [value / scale for value in std],
    }


def crop_share(crop: tuple[int, int], resized: tuple[int, int]) -> float:
    """Returns a share of which timm, which rounds down, makes the sizes that images are resized to before the crop."""
    for share in (*(round(crop[0] / resized[0], digits) for digits in range(1, 7)), crop[0] / (resized[0] + 0.5)):
        if share and all(math.floor(side / share) == whole for side, whole in zip(crop, resized)):
            return share
    raise ValueError("it crops both sides by different shares")
