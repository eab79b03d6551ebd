# SPDX-License-Identifier: Apache-2.0
"""Image transforms as `preprocessor_config.json`: the evaluation transform of the original, and those of others.

The original's: RGB, shorter side to 256 of 224 (bicubic, antialiased), centre crop, [0, 1], ImageNet mean and standard
deviation: https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py#L61.

A transform is a mapping with the arguments of transformers' `BitImageProcessor`, so weights take it along where Pillow
is not installed. The files of transformers' other image processors, and of timm, are put in these terms.
"""

import json
import math
import os
import re
import uuid
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, cached_file, logging

from .checkpoint_files import read_mapping
from .configuration_dino import DinoConfig


logger = logging.get_logger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BILINEAR, BICUBIC = 2, 3  # of PIL.Image.Resampling; Pillow is not needed to save a model
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # timm's names, by Pillow's numbers
MAX_SIDE = 2**14  # pixels of an image after the transform
LARGEST = 1e30  # that float32 computes with; no number compares with NaN

# what transformers' image processors do where their files say nothing
CENTER_CROP = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SQUASH_AND_CROP = {**CENTER_CROP, "size": {"height": 256, "width": 256}, "image_mean": 0.5, "image_std": 0.5}
SQUASH = {**SQUASH_AND_CROP, "size": {"height": 224, "width": 224}, "resample": BILINEAR, "do_center_crop": False}
OF_DINOV3 = {**SQUASH, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
DEFAULTS = {"Bit": CENTER_CROP, "CLIP": CENTER_CROP, "DeiT": SQUASH_AND_CROP, "ViT": SQUASH, "DINOv3ViT": OF_DINOV3}
# arguments that say nothing about the pixels, or what a processor cannot be told by a file
NOT_KEPT = ("feature_extractor_type", "image_processor_type", "default_to_square", "data_format", "input_data_format")
NOT_KEPT += ("device", "return_tensors", "disable_grouping", "processor_class", "auto_map", "_processor_class")


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
    Returns the evaluation transform of the original for a model, as transformers' `BitImageProcessor`, which resizes
    by the shorter side, takes it.

    DINOv3's resizes in 8 bits, as its README does, where transformers' processor rescales before.

    Images with other than three channels are not converted to RGB. [`DinoImageProcessor`] reads the same arguments.
    """
    side = config.evaluation_size or config.image_size
    mean, std = channel_statistics(config.num_channels)
    square = {"height": side, "width": side}
    is_crop = config.image_resize == "crop"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": config.num_channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": side * 8 // 7} if is_crop else square,  # 256 for 224
        "resample": BICUBIC if is_crop else BILINEAR,
        "do_center_crop": is_crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean if config.channel_means is None else list(config.channel_means),
        "image_std": std if config.channel_deviations is None else list(config.channel_deviations),
    }


def read_image_transform(name_or_path: str | os.PathLike, num_channels: int, **location) -> dict | None:
    """
    Reads the transform that lies beside weights: `preprocessor_config.json`, or what timm has in `config.json`.

    Args:
        name_or_path: a folder, or a model id on the hub, of this library, of transformers or of timm.
        num_channels: channels of the model's images.
        location: the arguments of `from_pretrained` that say where the files are.

    Returns:
        the transform as [`image_processor_config`] has it; that of an image processor of another kind as it is in the
        file; None if there is none.

    Raises:
        ValueError: if a value cannot work, or the file is damaged.
        OSError: if a file cannot be read.
    """
    for file_name, translate in ((CONFIG_NAME, from_timm), (IMAGE_PROCESSOR_NAME, from_transformers)):
        path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **location)
        if path is not None and (transform := translate(read_mapping(Path(path)), num_channels)) is not None:
            check_image_transform(transform, num_channels, path)
            return transform
    return None


def from_transformers(settings: dict, num_channels: int) -> dict:
    """
    Returns the contents of a `preprocessor_config.json` as [`image_processor_config`] has them.

    Those of a kind that is not among the five that only resize, crop and normalise stay as they are.
    """
    name = str(settings.get("image_processor_type", settings.get("feature_extractor_type", "BitImageProcessor")))
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name)
    if kind not in DEFAULTS or settings.get("do_pad"):
        return settings
    own = {key: value for key, value in settings.items() if key not in NOT_KEPT and value is not None}
    values = {"do_convert_rgb": num_channels == 3, **DEFAULTS[kind], **own}
    is_squashed = "height" in DEFAULTS[kind]["size"]
    values["size"] = _as_size(values["size"], is_squashed)
    if not values["do_center_crop"] and "crop_size" not in own and isinstance(values["size"], dict):
        values["crop_size"] = _as_size(values["size"].get("shortest_edge", values["size"]), True)
    values["crop_size"] = _as_size(values["crop_size"], True)
    for key in ("image_mean", "image_std"):
        if _is_number(values[key]):
            values[key] = [values[key]] * num_channels
    return {"image_processor_type": "BitImageProcessor", **values}


def _as_size(size: object, is_square: bool) -> object:
    """Returns a size that is a number, or height and width, as a mapping."""
    if isinstance(size, int) and not isinstance(size, bool):
        return {"height": size, "width": size} if is_square else {"shortest_edge": size}
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    return size


def from_timm(settings: dict, num_channels: int) -> dict | None:
    """
    Returns the evaluation transform that timm makes of a `config.json`, in our terms; None if it is not timm's.

    https://github.com/huggingface/pytorch-image-models/blob/v1.0.31/timm/data/config.py has the defaults.
    """
    if "architecture" not in settings:
        return None
    cfg = settings.get("pretrained_cfg", settings)
    cfg = {key: value for key, value in cfg.items() if value} if isinstance(cfg, dict) else {}
    try:
        _, height, width = cfg.get("input_size", (num_channels, 224, 224))
        crop_pct, interpolation = float(cfg.get("crop_pct", 0.875)), cfg.get("interpolation", "bicubic")
        size = {"height": math.floor(height / crop_pct), "width": math.floor(width / crop_pct)}
        statistics = [cfg.get("mean", list(IMAGENET_MEAN)), cfg.get("std", list(IMAGENET_STD))]
        mean, std = (list(values) * (num_channels if len(values) == 1 else 1) for values in statistics)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"the pretrained_cfg of a timm model is damaged ({error})") from error
    mode = cfg.get("crop_mode", "center")
    if interpolation not in RESAMPLING or mode not in ("center", "squash"):
        logger.warning(
            f"crop_mode {mode!r} and interpolation {interpolation!r} of timm are replaced by a bicubic center crop"
        )
        interpolation, mode = "bicubic", "center"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": num_channels == 3,
        "do_resize": True,
        "size": size if mode == "squash" else {"shortest_edge": min(size.values())},
        "resample": RESAMPLING.index(interpolation),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def check_image_transform(transform: dict, num_channels: int | None = None, source: str | os.PathLike = "transform"):
    """
    Raises ValueError if a transform cannot work, or spoils images without a sign; the message names the value.

    Args:
        transform: as in a `preprocessor_config.json`; what it lacks is not checked.
        num_channels: of the model's images, by default any number.
        source: what the message calls the transform.
    """

    def check(name: str, is_right: bool, what: str):
        if not is_right:
            raise ValueError(f"{source}: {name}={transform[name]!r} must be {what}")

    for name in {"do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"} & transform.keys():
        check(name, transform[name] in (True, False, None), "true or false")
    for name in {"size", "crop_size"} & transform.keys():
        check(name, _is_size(transform[name]), f"whole numbers of pixels from 1 to {MAX_SIDE}")
    if "crop_size" in transform and isinstance(transform["crop_size"], dict):
        check("crop_size", {"height", "width"} <= transform["crop_size"].keys(), "a height and a width")
    if "resample" in transform:
        known = range(len(RESAMPLING))
        check("resample", transform["resample"] is None or _is_number(transform["resample"]), "a number")
        check("resample", transform["resample"] in (None, *known), f"one of {', '.join(map(str, known))}")
    if transform.get("rescale_factor") is not None:
        factor = transform["rescale_factor"]
        check("rescale_factor", _is_number(factor) and 0 < factor < LARGEST, "a finite number greater than 0")
    for name in ("image_mean", "image_std"):
        values = transform.get(name)
        if values is None:
            continue
        values = values.tolist() if hasattr(values, "tolist") else values  # an array, in Python
        values = [values] * (num_channels or 1) if _is_number(values) else values
        is_list = isinstance(values, (list, tuple)) and len(values) > 0 and all(map(_is_number, values))
        check(name, is_list and all(abs(value) < LARGEST for value in values), "finite numbers, one a channel")
        check(name, num_channels in (None, len(values)), f"{num_channels} numbers, one for each channel of the model")
        check(name, name == "image_mean" or min(values) > 0, "greater than 0")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(size: object) -> bool:
    sides = size.values() if isinstance(size, dict) else size if isinstance(size, (list, tuple)) else [size]
    sides = [side for side in sides if side is not None]
    is_whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    return bool(sides) and is_whole and min(sides) >= 1 and max(sides) <= MAX_SIDE


def save_image_transform(transform: dict, folder: str | os.PathLike, keep: bool = False):
    """Writes `preprocessor_config.json`; with `keep` one that is there stays, if size and channels are the same."""
    path = Path(folder) / IMAGE_PROCESSOR_NAME
    if keep and path.is_file() and _fits(path, transform):
        return
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")  # several may write at a time
    try:
        partial.write_text(json.dumps(transform, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fits(path: Path, ours: dict) -> bool:
    try:
        theirs = read_mapping(path)
        return theirs["crop_size"] == ours["crop_size"] and len(theirs["image_mean"]) == len(ours["image_mean"])
    except (ValueError, KeyError, TypeError):
        return False
