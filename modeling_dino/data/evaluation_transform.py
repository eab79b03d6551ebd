# SPDX-License-Identifier: Apache-2.0
"""Resizes, crops and normalises images exactly as the evaluation of the original does, whatever their size and mode.

transformers' own processors read the same `preprocessor_config.json`, but differ from torchvision, and so from the
original, in two things. They round the offset of the centre crop down instead of half to even: where the resized image
is larger than the crop by 3, 7, 11, … pixels they are one pixel off. And they lay transparent images over white, where
the original drops the transparency.

The original's retrieval and copy detection do not crop: the first makes the longer side fit
(https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py), the second squashes images to squares
(its eval_copy_detection.py).
"""

import numpy as np
import torch
from PIL import Image
from transformers import BitImageProcessorPil, ImageProcessingMixin
from transformers.image_transforms import to_pil_image
from transformers.image_utils import ChannelDimension, ImageInput, SizeDict

from ..image_processing_dino import check_image_transform
from .decoding import check_resized


RESIZE = ("crop", "square", "whole")


class DinoImageProcessor(BitImageProcessorPil):
    """
    Resizes and crops as https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py#L61, with Pillow.

    It is saved as transformers' `BitImageProcessor`, which loads everywhere. Raises ValueError if a value cannot work.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_image_transform(self.to_dict(), source=type(self).__name__)

    def convert_to_rgb(self, image: ImageInput, *args, **kwargs) -> ImageInput:
        """Converts an image to RGB, and drops transparency."""
        if isinstance(image, Image.Image):
            image = image.convert("RGB")
            image.info.pop("transparency", None)  # a transparent colour of a palette outlives its conversion
        return super().convert_to_rgb(image, *args, **kwargs)

    def resize(self, image: np.ndarray, size: SizeDict, *args, **kwargs) -> np.ndarray:
        """Resizes (C, H, W) in 8 bits; a longer side that is given alone makes images smaller, but not larger."""
        if size.shortest_edge or not size.longest_edge:
            return super().resize(image, size, *args, **kwargs)
        picture = to_pil_image(image, do_rescale=False, input_data_format=ChannelDimension.FIRST)
        picture.thumbnail((size.longest_edge, size.longest_edge), Image.Resampling.LANCZOS)
        return np.atleast_3d(picture).transpose(2, 0, 1)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """Crops (C, H, W) to (C, size.height, size.width)."""
        top, left = (round((side - crop) / 2) for side, crop in zip(image.shape[1:], (size.height, size.width)))
        if top < 0 or left < 0:
            return super().center_crop(image, size, **kwargs)
        return image[:, top : top + size.height, left : left + size.width]

    def crop(self, image: Image.Image) -> torch.Tensor:
        """Resizes and crops an image, without scaling or normalising it: (C, H, W) in uint8."""
        return torch.tensor(self(image, do_rescale=False, do_normalize=False)["pixel_values"][0])

    def grey_levels(self, num_channels: int) -> torch.Tensor:
        """Returns the 256 grey levels of each channel, scaled and normalised: (C, 256) in float32."""
        levels = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 1, num_channels))
        ramp = self(levels, do_resize=False, do_center_crop=False, input_data_format="channels_last")
        return torch.tensor(ramp["pixel_values"][0]).squeeze(2)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "image_processor_type": "BitImageProcessor"}


class ImageTransform:
    """
    Applies an image processor to one image at a time, in two steps.

    The first, a call, gives grey levels where the processor can, a quarter of what worker processes would otherwise
    have to hand over; the second, `normalize`, scales and normalises batches of them.

    Args:
        min_side: of an image after the transform, in pixels, as the model needs it.
    """

    def __init__(self, processor: ImageProcessingMixin, num_channels: int = 3, min_side: int = 1):
        self.processor, self.min_side = processor, min_side
        self.shorter_side = min(dict(processor.size).values())
        has_levels = hasattr(processor, "grey_levels") and processor.do_rescale and processor.do_normalize
        self.levels = processor.grey_levels(num_channels) if has_levels else None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """
        Resizes and crops an image, to (C, H, W). Raises ValueError if the image is too thin to be resized, or
        afterwards too small for the model.
        """
        check_resized(image, self.shorter_side)
        if self.levels is None:
            pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        else:
            pixels = self.processor.crop(image)
        height, width = pixels.shape[1:]
        if min(height, width) < self.min_side:
            raise ValueError(f"{width} x {height} pixels after resizing: the model needs {self.min_side} each way")
        return pixels

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the pixel values of a batch of transformed images, (B, C, H, W), bit for bit the processor's."""
        if self.levels is None:
            return pixels
        channels = pixels.int().transpose(0, 1)  # (C, B, H, W)
        levels = self.levels.to(pixels.device)
        looked_up = [level.index_select(0, values.flatten()) for level, values in zip(levels, channels)]
        return torch.stack([x.view(channels.shape[1:]) for x in looked_up], dim=1)


def resized_to(processor: ImageProcessingMixin, resize: str, side: int | None) -> ImageProcessingMixin:
    """
    Returns a transform that differs from another in size.

    Args:
        resize: `"crop"`: a square from the middle of the image, 7/8 of its shorter side, as saved models have it;
            `"square"`: all of it, squashed; `"whole"`: all of it, the longer side at most as long as `side`.
        side: of the result, in pixels; by default that of the other transform.

    Raises:
        ValueError: if `resize` is unknown, or the side less than a pixel.
    """
    if resize not in RESIZE:
        raise ValueError(f"unknown resize {resize!r}: allowed are {', '.join(RESIZE)}")
    if side is not None and side < 1:
        raise ValueError(f"image_size={side} must be at least 1 pixel")
    if resize == "crop" and side is None:
        return processor
    side = side or processor.crop_size["height"]
    square = {"height": side, "width": side}
    sizes = {"crop": {"shortest_edge": side * 8 // 7}, "square": square, "whole": {"longest_edge": side}}
    options = {**processor.to_dict(), "size": sizes[resize], "crop_size": square, "do_center_crop": resize == "crop"}
    return DinoImageProcessor(**options)
