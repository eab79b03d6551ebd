# SPDX-License-Identifier: Apache-2.0
"""Reads and writes masks of objects as palette PNGs, whose index is the object's number; 0 is the background.

As in DAVIS (https://davischallenge.org), 255 belongs to no object, and counts as background. A mask in black and white
is one object.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.decoding import opened_image
from ..pictures.picture_files import save_picture
from ..runtime.extras import require


VOID = 255
MODES = ("P", "L", "1")  # palette, grey, bilevel


@dataclass(frozen=True)
class Mask:
    """
    Says which object is at each pixel.

    Args:
        objects: (H, W), of uint8: the number of the object, 0 where there is none.
        palette: red, green and blue of each number; None if the file had none.
    """

    objects: torch.Tensor
    palette: list[int] | None = None

    @property
    def numbers(self) -> list[int]:
        """The numbers of the objects, without the background."""
        return [number for number in self.objects.unique().tolist() if number]


def read_mask(path: str | os.PathLike) -> Mask:
    """Reads a mask. Raises ValueError if the file cannot be read, or is no mask."""
    try:
        with opened_image(str(path)) as image:
            mode, palette, values = image.mode, image.getpalette(), np.array(image)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if mode not in MODES:
        raise ValueError(f"{path} has mode {mode}: a mask is a palette or grey image of the objects' numbers")
    objects = torch.from_numpy(values.astype(np.uint8))
    if mode == "1" or (mode == "L" and set(objects.unique().tolist()) <= {0, VOID}):
        return Mask((objects > 0).to(torch.uint8))
    return Mask(objects.where(objects != VOID, 0), palette)


def write_mask(mask: Mask, file: Path):
    """Writes a palette PNG, with DAVIS's palette if the mask has none."""
    picture = require("PIL.Image").fromarray(mask.objects.numpy())
    picture.putpalette(mask.palette or davis_palette())
    save_picture(picture, file)


def davis_palette() -> list[int]:
    """Returns the palette of Pascal VOC and DAVIS: bits 0, 3 and 6 of a number are the upper bits of red, …"""
    return [
        sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(3))
        for number in range(256)
        for channel in range(3)
    ]
