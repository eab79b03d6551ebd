# SPDX-License-Identifier: Apache-2.0
"""The evaluation transform of the original, as a `preprocessor_config.json` that needs transformers alone.

RGB, shorter side to 256 of 224 (bicubic, antialiased), centre crop, [0, 1], ImageNet mean and standard deviation:
https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py#L61.
"""

import json
import os
from pathlib import Path

import torch
from transformers.utils import IMAGE_PROCESSOR_NAME

from .configuration_dino import DinoConfig


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC; Pillow is not needed to save a model


def channel_statistics(num_channels: int) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel: ImageNet's, or unless there are three their means."""
    if num_channels == 3:
        return list(IMAGENET_MEAN), list(IMAGENET_STD)
    return [sum(IMAGENET_MEAN) / 3] * num_channels, [sum(IMAGENET_STD) / 3] * num_channels


def is_rescaled_twice(pixel_values: torch.Tensor) -> bool:
    """Returns whether normalised images (B, C, H, W) are within one grey level of black: divided by 255 twice."""
    if not pixel_values.numel():
        return False
    mean, std = (torch.tensor(v, device=pixel_values.device) for v in channel_statistics(pixel_values.shape[1]))
    low, high = torch.aminmax(pixel_values.float().transpose(0, 1).flatten(1), dim=1)
    low, high = low * std + mean, high * std + mean
    in_range = (low >= -0.5 / 255) & (high <= 1.5 / 255)  # resizing overshoots a little
    return bool((in_range.all() & (high > low).any()).item())


def image_processor_config(config: DinoConfig) -> dict:
    """
    Returns the arguments of transformers' `BitImageProcessor`, which resizes by the shorter side, for a model.

    Images with other than three channels are not converted to RGB. [`DinoImageProcessor`] reads the same arguments.
    """
    is_rgb = config.num_channels == 3
    mean, std = channel_statistics(config.num_channels)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": is_rgb,
        "do_resize": True,
        "size": {"shortest_edge": config.image_size * 8 // 7},  # 256 for 224
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def save_image_processor(config: DinoConfig, folder: str | os.PathLike):
    """Writes `preprocessor_config.json`, but keeps one that has the image size and channels of the model."""
    path, ours = Path(folder) / IMAGE_PROCESSOR_NAME, image_processor_config(config)
    if path.is_file() and _fits(path, ours):
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _fits(path: Path, ours: dict) -> bool:
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        return theirs["crop_size"] == ours["crop_size"] and len(theirs["image_mean"]) == len(ours["image_mean"])
    except (ValueError, KeyError, TypeError):
        return False
