# SPDX-License-Identifier: Apache-2.0
"""What timm's folders and files have in common: a `config.json` that names the model, its arguments and transform.

The `model.safetensors` of a folder that is written is what `timm.create_model(…, checkpoint_path=…)` takes.
"""

import math

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, is_state_dict
from conversion_scripts.checkpoint_format import CheckpointFormat, describe, family_of
from modeling_dino.configuration_dino import DinoConfig
from modeling_dino.image_processing_dino import RESAMPLING, image_processor_config


SIZES = {  # arguments of `timm.create_model` that all of its transformers have -> of DinoConfig
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
}


class TimmFormat(CheckpointFormat):
    """Models of one of timm's classes."""

    library = "timm"
    origin = "timm's"
    first_convs = {"resnet": "conv1", "convnext": "stem.0", "xcit": "patch_embed.proj.0.0"}  # by family
    arguments: dict[str, object] = {}  # of `timm.create_model`, without which its feature is another than ours

    def fits(self, names: set[str]) -> bool:
        """Returns whether tensors with such names are a model of the class."""
        raise NotImplementedError

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Goes by the names of tensors: those of a folder that says it is timm's, or those of a file."""
        is_theirs = not {"architecture", "pretrained_cfg"}.isdisjoint(checkpoint.config or {})
        if not is_theirs and (checkpoint.config is not None or not is_state_dict(checkpoint.contents)):
            return False
        return self.fits({self.without_prefix(name) for name in checkpoint.contents})

    def model_args_of(self, checkpoint: Checkpoint) -> dict:
        """Returns the arguments of `timm.create_model` that a folder names."""
        return dict((checkpoint.config or {}).get("model_args") or {})

    def license_of(self, checkpoint: Checkpoint) -> str | None:
        named = ((checkpoint.config or {}).get("pretrained_cfg") or {}).get("license")
        return named if isinstance(named, str) else self.license

    def packed(self, architecture: str, model_args: dict, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        """Returns the folder that names a model, with the arguments of `timm.create_model` that it differs by."""
        model_args = {"in_chans": config.num_channels, "num_classes": 0, **model_args, **self.arguments}
        pretrained_cfg = {"num_classes": 0, "first_conv": self.first_convs.get(family_of(config), "patch_embed.proj")}
        if config.weights_license is not None:
            pretrained_cfg["license"] = config.weights_license
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
        model_args = {**self.model_args_of(checkpoint), "num_classes": 0, **self.arguments}
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
