# SPDX-License-Identifier: Apache-2.0
"""Brings images to the form that a model takes: 8 bits by Pillow where it can be, else the values as they are stored.

A transform states the range of its images as transformers does, by `rescale_factor`: a value times it is what mean and
standard deviation refer to, so 1 / 255 stands for values from 0 to 255, 1 / 65535 for those of 16 bits, 1 for floating
point from 0 to 1. It holds for every image of a model, whatever its file is; nothing is guessed from the values.

Models of 1 or 3 channels whose range is that of 8 bits get images as the original reads them, by Pillow in L or RGB.
All others get arrays (H, W, C) of float32, not yet rescaled, whose channels are resized one by one in floating point.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import ImageProcessingMixin

from ..runtime.extras import PilImage, require


MODES = {1: "L", 3: "RGB"}  # channels -> mode
EIGHT_BITS = 1 / 255  # the rescale_factor of values from 0 to 255
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow makes grey of RGB
SHOWN_PERCENTILES = (2, 98)  # of a channel, that are shown black and white
CLIPPED = "values above 255 are clipped, as in the original; convert it to 8 bits, or state its range (rescale_factor)"

Decoded = PilImage | np.ndarray


def rescale_factor_of(transform: Mapping[str, Any]) -> float:
    """Returns the `rescale_factor` that states the range of a transform's images; without one they are of 8 bits."""
    factor = transform.get("rescale_factor") if transform.get("do_rescale", True) else None
    return EIGHT_BITS if factor is None else factor


def range_of(processor: ImageProcessingMixin) -> float:
    """Returns [`rescale_factor_of`] a processor; the images of other libraries' processors are of 8 bits."""
    is_ours = hasattr(processor, "grey_levels")
    if not is_ours:
        return EIGHT_BITS
    return rescale_factor_of({name: getattr(processor, name) for name in ("do_rescale", "rescale_factor")})


def states_8_bits(rescale_factor: float | None) -> bool:
    """Returns whether a range is 0 to 255, also where 1 / 255 was written with few digits."""
    return rescale_factor is not None and math.isclose(rescale_factor, EIGHT_BITS, rel_tol=1e-3)


def is_8_bit(num_channels: int | None, rescale_factor: float | None) -> bool:
    """Returns whether a model's images are those of Pillow in 8 bits."""
    return num_channels in MODES and states_8_bits(rescale_factor)


def as_model_takes(
    image: Decoded, num_channels: int | None = 3, rescale_factor: float | None = EIGHT_BITS
) -> tuple[Decoded, str | None]:
    """
    Brings an image to the form that a model takes. Transparency is dropped, as the original does.

    Args:
        image: by Pillow, of any mode; or an array (H, W) or (H, W, C), of any real dtype. An array of 2 or 4 channels
            is taken for grey or colours with transparency where the model takes 1 or 3 channels.
        num_channels: channels that the model takes; None for those that the image has.
        rescale_factor: states the range of the values; None if nothing does, so that they stay as they are.

    Returns:
        the image, and a note on what was lost of its values, if anything.

    Raises:
        ValueError: if the channels do not fit, or the values do not: they are not finite, or far below the range.
    """
    wide = is_wide(image)
    by_pillow = is_8_bit(num_channels, rescale_factor) or (
        num_channels in MODES and rescale_factor is None and not wide
    )
    if by_pillow and not isinstance(image, np.ndarray) and not wide:
        return _in_mode(image, num_channels), None
    values = _array(image)
    found = values.shape[2]
    if num_channels not in (None, found) and (num_channels not in MODES or found > 4):
        raise ValueError(f"{found} channel{'s' if found > 1 else ''}, but the model takes {num_channels}")
    check_values(values, rescale_factor)
    note = f"values of {values.dtype}: {CLIPPED}" if wide and states_8_bits(rescale_factor) else None
    if by_pillow:
        return _in_mode(_in_8_bits(values) if isinstance(image, np.ndarray) else image, num_channels), note
    values = _with_channels(values, num_channels).astype(np.float32)
    is_within = note is None or (values.min() >= 0 and values.max() <= 255)
    return (values, None) if is_within else (values.clip(0, 255), note)


def check_values(values: np.ndarray, rescale_factor: float | None):
    """
    Raises ValueError if values are not finite, or of another range than is stated, which would make them nearly black:
    8 bits that reach less than half of it, or floating point from 0 to 1 where that would be less than a grey level.
    """
    if values.dtype.kind not in "buif":
        raise ValueError(f"values of {values.dtype} are no image")
    with np.errstate(over="ignore"):
        if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise ValueError("not all values are finite in float32: some are NaN or infinite")
    if rescale_factor is None or not values.size:
        return
    stated = f"rescale_factor={rescale_factor:.6g} of the image transform states values up to {1 / rescale_factor:.6g}"
    if values.dtype == np.uint8 and 255 * rescale_factor < 0.5:
        raise ValueError(f"8 bits, but {stated}")
    if values.dtype.kind == "f" and rescale_factor < 1.001 * EIGHT_BITS and 0 < values.max() <= 1:
        raise ValueError(f"floating point from 0 to 1, but {stated}: set it to 1 for such images")


def is_wide(image: Decoded) -> bool:
    """Returns whether an image has values of more than 8 bits."""
    if isinstance(image, np.ndarray):
        return image.dtype not in (np.uint8, bool)
    return image.mode.startswith(("I", "F"))


def _without_palette(image: PilImage) -> PilImage:
    """Converts an image of Pillow whose numbers are no values of channels."""
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if image.mode == "1":
        return image.convert("L")
    kept = image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") or is_wide(image)
    return image if kept else image.convert("LA" if image.mode == "La" else "RGB")


def _array(image: Decoded) -> np.ndarray:
    """Returns the values of an image, (H, W, C); booleans become black and white."""
    values = image if isinstance(image, np.ndarray) else np.asarray(_without_palette(image))
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or not values.size:
        raise ValueError(f"an array of shape {values.shape} is no image: (H, W) or (H, W, C) is")
    return values


def _in_8_bits(values: np.ndarray) -> PilImage:
    """Returns an array (H, W, C) as an image of Pillow, in L, LA, RGB or RGBA."""
    levels = values if values.dtype == np.uint8 else values.clip(0, 255).astype(np.uint8)
    return require("PIL.Image").fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def _in_mode(image: PilImage, num_channels: int) -> PilImage:
    """Converts an image to L or RGB, and drops transparency."""
    image = image.convert(MODES[num_channels])
    image.info.pop("transparency", None)  # a transparent colour of a palette outlives its conversion
    return image


def _with_channels(values: np.ndarray, num_channels: int | None) -> np.ndarray:
    """Converts grey and colours, with or without transparency, (H, W, C), as Pillow does; others have what fits."""
    if num_channels in MODES and values.shape[2] in (2, 4):
        values = values[..., :-1]
    if num_channels == 3 and values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if num_channels == 1 and values.shape[2] == 3:
        return (values.astype(np.float32) @ LUMA)[..., None]
    return values


def size_of(image: Decoded) -> tuple[int, int]:
    """Returns width and height."""
    return image.shape[1::-1] if isinstance(image, np.ndarray) else image.size


def resized(
    image: Decoded, size: tuple[int, int], resample: int, white: float = 255, reducing_gap: float | None = None
) -> Decoded:
    """
    Resizes an image to (width, height) by a filter of Pillow.

    Arrays are resized in floating point, along one side and then along the other, and clipped after each, as 8 bits
    are: filters overshoot neither 0 and `white`, nor what the channel itself has beyond these.

    Args:
        reducing_gap: see Pillow's `Image.resize`; means of boxes make the image smaller first.
    """
    if not isinstance(image, np.ndarray):
        return image.resize(size, resample, reducing_gap=reducing_gap)
    width, height = size_of(image)
    boxes = (1, 1)
    if reducing_gap is not None:
        boxes = tuple(int(side / to / reducing_gap) or 1 for side, to in zip((width, height), size))
        image = by_channel(image, lambda channel: channel.reduce(boxes), white)
    for to, box in (
        ((size[0], len(image)), (0, 0, width / boxes[0], len(image))),
        (size, (0, 0, size[0], height / boxes[1])),
    ):
        image = by_channel(image, lambda channel, to=to, box=box: channel.resize(to, resample, box), white)
    return image


def by_channel(image: np.ndarray, function: Callable[[PilImage], PilImage], white: float) -> np.ndarray:
    """Applies a function of Pillow's images of mode F to each channel, and clips as [`resized`] does: (H, W, C)."""
    Image, channels = require("PIL.Image"), []
    for channel in np.moveaxis(image, 2, 0):
        low, high = min(0, channel.min()), max(white, channel.max())
        changed = function(Image.fromarray(np.ascontiguousarray(channel, np.float32)))
        channels.append(np.asarray(changed).clip(low, high))
    return np.stack(channels, axis=2)


def rescaled(image: Decoded, rescale_factor: float) -> PilImage | torch.Tensor:
    """Rescales an array and makes a tensor of it, (H, W, C) -> (C, H, W); images of Pillow stay as they are."""
    if not isinstance(image, np.ndarray):
        return image
    return torch.from_numpy(image).permute(2, 0, 1).contiguous() * rescale_factor


def check_bands(bands: Sequence[int] | None, num_channels: int):
    """Raises ValueError if these are not one or three of the channels, counted from 1."""
    if bands is None:
        return
    if len(bands) not in MODES or min(bands) < 1 or max(bands) > num_channels:
        numbers = ",".join(map(str, bands))
        raise ValueError(
            f"bands={numbers} must be one number or three, from 1 to {num_channels}, the model's channels"
        )


def as_picture(image: Decoded, bands: Sequence[int] | None = None) -> PilImage:
    """
    Returns a picture to look at, in L or RGB of 8 bits.

    Args:
        image: in 8 bits of L or RGB, which stays as it is; or an array (H, W, C), whose channels are stretched so that
            their 2nd and 98th percentiles are black and white.
        bands: the channels, counted from 1, that are shown in grey, or in red, green and blue; by default the first
            three, or the first where there are fewer than three.
    """
    Image = require("PIL.Image")
    if not isinstance(image, np.ndarray):
        if bands is None:
            return image
        chosen = [image.split()[band - 1] for band in bands]
        return Image.merge(MODES[len(bands)], chosen)
    chosen = [band - 1 for band in bands or ((1, 2, 3) if image.shape[2] >= 3 else (1,))]
    values = image[..., chosen]
    low, high = np.percentile(values, SHOWN_PERCENTILES, axis=(0, 1))
    levels = ((values - low) / np.where(high > low, high - low, 1) * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels if len(chosen) == 3 else levels[..., 0])
