# SPDX-License-Identifier: Apache-2.0
"""Resizes, crops and normalises images exactly as the evaluation of the original does, whatever their size and mode.

Images that are not of 8 bits, or have other channels, go the same way in floating point: see `image_values.py`.

transformers' own processors read the same `preprocessor_config.json`, but differ from torchvision, and so from the
original, in two things. They round the offset of the centre crop down instead of half to even: where the resized image
is larger than the crop by 3, 7, 11, … pixels they are one pixel off. And they lay transparent images over white, where
the original drops the transparency.

The original's retrieval and copy detection do not crop: the first makes the longer side fit
(https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py), the second squashes images to squares
(its eval_copy_detection.py).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, BitImageProcessorPil, ImageProcessingMixin
from transformers.image_transforms import get_resize_output_image_size, to_pil_image
from transformers.image_utils import ChannelDimension, ImageInput, SizeDict, infer_channel_dimension_format
from transformers.utils import TensorType, logging

from ..image_processing_dino import check_image_transform
from .decoding import check_resized
from .image_values import EIGHT_BITS, MODES, Decoded, as_model_takes, is_8_bit, range_of, resized, size_of


logger = logging.get_logger(__name__)


RESIZE = ("crop", "square", "longest", "none")
MAX_OWN_PIXELS = 2**22  # of an image that is not resized; a ViT with patches of 8 makes 65,536 tokens of them


class DinoImageProcessor(BitImageProcessorPil):
    """
    Resizes and crops as https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py#L61, with Pillow.

    It is saved as transformers' `BitImageProcessor`, which loads everywhere. Raises ValueError if a value cannot work.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_image_transform(self.to_dict(), source=type(self).__name__)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> ImageInput:
        """Makes a list of images; transformers' own takes no arrays (H, W)."""
        listed = list(images) if isinstance(images, (list, tuple)) else [images]
        if any(getattr(image, "ndim", None) == 2 for image in listed):
            return listed
        return super()._prepare_images_structure(images, expected_ndims)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: ChannelDimension | str | None = None,
        image_mean: Sequence[float] | float | None = None,
        do_rescale: bool = True,
        rescale_factor: float = EIGHT_BITS,
        **kwargs,
    ) -> np.ndarray:
        """
        Brings an image to the channels of the mean, as its file would be read: see [`as_model_takes`].

        Args:
            image: by Pillow; or an array or tensor, (H, W), (H, W, C) or (C, H, W).
            do_rescale: whether `rescale_factor` states the range of the values; else they stay as they are.

        Returns:
            (C, H, W), in uint8 for models of 8 bits, else in float32 and not yet rescaled.

        Raises:
            ValueError: if it has other channels or values than the model takes, or it is unclear where channels are.
        """
        num_channels = len(image_mean) if isinstance(image_mean, (list, tuple)) else 3 if do_convert_rgb else None
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
        if isinstance(image, np.ndarray) and image.ndim == 3:
            image = _channels_last(image, num_channels, input_data_format)
        taken, note = as_model_takes(image, num_channels, rescale_factor if do_rescale else None)
        if note:
            logger.warning_once(note)
        values = np.asarray(taken)
        return values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        size: SizeDict,
        resample: int,
        do_resize: bool,
        do_rescale: bool,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Gives images that end up with different sizes as a list, which [`DinoModel`] takes; transformers cannot."""
        white = 1 / kwargs["rescale_factor"] if do_rescale else 1.0
        if do_resize:
            images = [self.resize(image, size, resample, white=white) for image in images]
        options = {"size": size, "resample": resample, "do_resize": False, "do_rescale": do_rescale, **kwargs}
        images = super()._preprocess(images, return_tensors=None, **options)["pixel_values"]
        if len({image.shape for image in images}) > 1:
            one_by_one = [BatchFeature({"pixels": image}, return_tensors)["pixels"] for image in images]
            return BatchFeature({"pixel_values": one_by_one})
        return BatchFeature({"pixel_values": images}, return_tensors)

    def resize(
        self, image: np.ndarray, size: SizeDict, resample: int | None = None, white: float = 255, **kwargs
    ) -> np.ndarray:
        """
        Resizes (C, H, W), in 8 bits or floating point; a longer side that is given alone makes images smaller, but not
        larger. Floating point does not overshoot 0 and `white` by resizing.
        """
        fits, in_8_bits = size.longest_edge and not size.shortest_edge, image.dtype == np.uint8
        if in_8_bits and not fits:
            return super().resize(image, size, resample, **kwargs)
        if fits:  # as Pillow's thumbnail does
            thumbnail = Image.new("1", image.shape[:0:-1])
            thumbnail.thumbnail((size.longest_edge, size.longest_edge))
            (width, height), resample, gap = thumbnail.size, Image.Resampling.LANCZOS, 2.0
        elif size.height and size.width:
            height, width, gap = size.height, size.width, None
        else:
            height, width = get_resize_output_image_size(
                image, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
            )
            gap = None
        picture = (
            to_pil_image(image, do_rescale=False, input_data_format=ChannelDimension.FIRST)
            if in_8_bits
            else np.moveaxis(image, 0, 2)
        )
        values = np.atleast_3d(resized(picture, (width, height), resample, white, gap))
        return np.moveaxis(values, 2, 0)

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


def _channels_last(
    image: np.ndarray, num_channels: int | None, input_data_format: ChannelDimension | str | None
) -> np.ndarray:
    """Returns (H, W, C) of an array; where it is not said which axis has the channels, their number says it."""
    if input_data_format is None:
        possible = (1, 2, 3, 4) if num_channels in (None, *MODES) else (num_channels,)
        if not {image.shape[0], image.shape[2]} & set(possible):
            wanted = f"takes {num_channels} channels" if num_channels else "does not say how many channels it takes"
            raise ValueError(f"an array of shape {image.shape}, but the model {wanted}")
        input_data_format = infer_channel_dimension_format(image, num_channels=possible)
    return np.moveaxis(image, 0, 2) if input_data_format == ChannelDimension.FIRST else image


class ImageTransform:
    """
    Applies an image processor to one image at a time, in two steps.

    The first, a call, gives grey levels where the processor can, a quarter of what worker processes would otherwise
    have to hand over; the second, `normalize`, scales and normalises batches of them.

    Args:
        num_channels: channels of the model.
        min_side: of an image after the transform, in pixels, as the model needs it.

    Raises:
        ValueError: if the processor, another library's, takes only images of 8 bits.
    """

    def __init__(self, processor: ImageProcessingMixin, num_channels: int = 3, min_side: int = 1):
        self.processor, self.num_channels, self.min_side = processor, num_channels, min_side
        self.rescale_factor = range_of(processor)
        self.keeps_size = not processor.do_resize and not getattr(processor, "do_center_crop", False)
        self.shorter_side = min(dict(processor.size).values()) if processor.do_resize else 1
        in_8_bits, is_ours = is_8_bit(num_channels, self.rescale_factor), hasattr(processor, "grey_levels")
        if not in_8_bits and not is_ours:
            raise ValueError(
                f"{type(processor).__name__} takes images of 8 bits and 1 or 3 channels: others need a transform of "
                "image_processor_type BitImageProcessor"
            )
        has_levels = in_8_bits and is_ours and processor.do_rescale and processor.do_normalize
        self.levels = processor.grey_levels(num_channels) if has_levels else None

    def __call__(self, image: Decoded) -> torch.Tensor:
        """
        Resizes and crops an image, as [`read_image`] gives it, to (C, H, W). Raises ValueError if the image is too
        thin to be resized, or afterwards too small for the model.
        """
        check_resized(image, self.shorter_side)
        if isinstance(image, np.ndarray):
            pixels = self.processor(image, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
        elif self.levels is None:
            pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        else:
            pixels = self.processor.crop(image)
        height, width = pixels.shape[1:]
        if min(height, width) < self.min_side:
            raise ValueError(f"{width} x {height} pixels after resizing: the model needs {self.min_side} each way")
        return pixels

    def fit(self, image: Decoded) -> tuple[Decoded, str | None]:
        """
        Returns an image as it is, unless it would keep its size, and that is below what the model needs or above
        `MAX_OWN_PIXELS`: then resized, with a note that says so.
        """
        width, height = size_of(image)
        least, most = self.min_side / min(width, height), (MAX_OWN_PIXELS / (width * height)) ** 0.5
        scale = min(max(1, least), most)
        if not self.keeps_size or scale == 1:
            return image, None
        size = tuple(max(1, round(side * scale)) for side in (width, height))
        why = f"the model needs {self.min_side} each way" if scale > 1 else f"more than {MAX_OWN_PIXELS} are too many"
        fitted = resized(image, size, self.processor.resample, white=1 / self.rescale_factor)
        return fitted, f"{width} x {height} pixels, resized to {size[0]} x {size[1]}: {why}"

    def pixel_values(self, image: Decoded) -> torch.Tensor:
        """Returns an image as the model takes it: (C, H, W), in float32."""
        return self.normalize(self(image)[None])[0]

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the pixel values of a batch of transformed images, (B, C, H, W), bit for bit the processor's."""
        return self.normalizer(pixels.device)(pixels)

    def normalizer(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Returns `normalize` for batches on a device, which copies nothing there for each of them."""
        return (lambda pixels: pixels) if self.levels is None else partial(look_up, self.levels.to(device))


def look_up(levels: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the values of grey levels (B, C, H, W) by a table (C, 256), on one device."""
    channels = pixels.int().transpose(0, 1)  # (C, B, H, W)
    looked_up = [level.index_select(0, values.flatten()) for level, values in zip(levels, channels)]
    return torch.stack([x.view(channels.shape[1:]) for x in looked_up], dim=1)


def resized_to(processor: ImageProcessingMixin, resize: str, side: int | None) -> ImageProcessingMixin:
    """
    Returns a transform that differs from another in size.

    Args:
        resize: `"crop"`: a square from the middle of the image, 7/8 of its shorter side, as saved models have it;
            `"square"`: all of it, squashed; `"longest"`: all of it, the longer side at most as long as `side`;
            `"none"`: all of it, in its own size.
        side: of the result, in pixels; by default that of the other transform.

    Raises:
        ValueError: if `resize` is unknown, the side less than a pixel, or given for images in their own sizes.
    """
    if resize not in RESIZE:
        raise ValueError(f"unknown resize {resize!r}: allowed are {', '.join(RESIZE)}")
    if side is not None and side < 1:
        raise ValueError(f"image_size={side} must be at least 1 pixel")
    if resize == "none" and side is not None:
        raise ValueError(f"image_size={side} has no use for resize none: leave it out, or choose longest")
    if resize == "crop" and side is None:
        return processor
    if resize == "none":
        return DinoImageProcessor(**{**processor.to_dict(), "do_resize": False, "do_center_crop": False})
    side = side or processor.crop_size["height"]
    square = {"height": side, "width": side}
    sizes = {"crop": {"shortest_edge": side * 8 // 7}, "square": square, "longest": {"longest_edge": side}}
    changed = {"do_resize": True, "size": sizes[resize], "crop_size": square, "do_center_crop": resize == "crop"}
    return DinoImageProcessor(**{**processor.to_dict(), **changed})
