# SPDX-License-Identifier: Apache-2.0
"""Images of any size for a ViT, cropped to whole patches, and pictures that are painted patch by patch."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..data.image_values import EIGHT_BITS, Decoded, as_picture, rescaled, resized, size_of
from ..runtime.extras import PilImage, require


GAP, CAPTION, FONT_SIZE = 8, 24, 16  # pixels
LINE, SMALL = 18, 13  # of the sentences around pictures, in pixels
QUIET, WARNING = "#555555", "#cf222e"
RANDOM_WEIGHTS = "These are random weights: the model was never trained."


@dataclass(frozen=True)
class PatchTransform:
    """
    The transform of whole images for a model with patches.

    Args:
        patch_size: side of the model's patches in pixels.
        mean, std: of each channel, after rescaling, as the model was trained.
        size: to which the shorter side is resized, in pixels.
        rescale_factor: states the range of the values of images that are not of 8 bits.
        bands: the channels that are shown; see [`as_picture`].

    Raises:
        ValueError: if the size is less than a patch.
    """

    patch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    size: int
    rescale_factor: float = EIGHT_BITS
    bands: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.size < self.patch_size:
            raise ValueError(f"size={self.size} must be at least one patch of {self.patch_size} pixels")

    def crop(self, image: Decoded) -> Decoded:
        """Resizes an image by its shorter side, and crops it at the bottom and right to whole patches."""
        width, height = self.resized_size(image)
        image = self.resize(image, (width, height), require("PIL.Image").Resampling.BICUBIC)
        width, height = width - width % self.patch_size, height - height % self.patch_size
        return image[:height, :width] if isinstance(image, np.ndarray) else image.crop((0, 0, width, height))

    def resized_size(self, image: Decoded) -> tuple[int, int]:
        """Returns width and height of an image when its shorter side is resized, before it is cropped."""
        scale = self.size / min(size_of(image))
        width, height = (max(self.patch_size, round(side * scale)) for side in size_of(image))
        return width, height

    def resize(self, image: Decoded, size: tuple[int, int], resample: int) -> Decoded:
        """Resizes an image to (width, height)."""
        return resized(image, size, resample, white=1 / self.rescale_factor)

    def pixel_values(self, image: Decoded) -> torch.Tensor:
        """Returns an image as a normalised batch of one: (1, C, H, W)."""
        width, height = size_of(image)
        if isinstance(image, np.ndarray):
            pixels = rescaled(image, self.rescale_factor).permute(1, 2, 0)
        else:
            pixels = torch.from_numpy(np.array(image)).reshape(height, width, -1) / 255
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).unsqueeze(0)

    def picture(self, image: Decoded) -> PilImage:
        """Returns a picture of an image to look at."""
        return as_picture(image, self.bands)


def paint_patches(colors: torch.Tensor, patch_size: int) -> PilImage:
    """Paints a square of patch size for each color: (h, w, 3) in [0, 1], or (h, w) from black to white."""
    Image = require("PIL.Image")
    picture = Image.fromarray((colors * 255 + 0.5).to(torch.uint8).numpy())
    return picture.resize((colors.shape[1] * patch_size, colors.shape[0] * patch_size), Image.Resampling.NEAREST)


def even_hues(number: int) -> torch.Tensor:
    """Returns so many bright colors, whose hues are evenly spaced: (number, 3), in [0, 1]."""
    return torch.tensor([colorsys.hsv_to_rgb(i / number, 0.9, 1.0) for i in range(number)])


def enlarge(maps: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """Interpolates maps of patches to the pixels of an image of size (height, width): (n, h, w) -> (n, H, W)."""
    return nn.functional.interpolate(maps[None], size, mode=mode)[0]


def mosaic(
    rows: Sequence[Mapping[str, PilImage]], below: Sequence[str], swatches: Mapping[str, tuple] | None = None
) -> PilImage:
    """
    Puts pictures side by side, under their titles.

    Args:
        rows: from top to bottom; the pictures of each by their titles.
        below: sentences under the pictures.
        swatches: colors by the titles that they are shown behind.
    """
    Image, ImageDraw = require("PIL.Image"), require("PIL.ImageDraw")
    width = max(tile.width for row in rows for tile in row.values()) + GAP
    heights = [max(tile.height for tile in row.values()) + CAPTION + GAP for row in rows]
    picture = Image.new("RGB", (max(map(len, rows)) * width + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    top = GAP
    for row, height in zip(rows, heights):
        for column, (title, tile) in enumerate(row.items()):
            left, color = GAP + column * width, (swatches or {}).get(title)
            title = shortened(title, width - 2 * GAP - (FONT_SIZE if color else 0))
            draw.text((left, top), title, fill="black", font_size=FONT_SIZE)
            if color:
                begin = left + draw.textlength(title, font_size=FONT_SIZE) + GAP
                draw.rectangle((begin, top + 2, begin + FONT_SIZE, top + 2 + FONT_SIZE), fill=color)
            picture.paste(tile, (left, top + CAPTION))
        top += height
    return with_lines(picture, below=below)


def with_lines(picture: PilImage, above: Sequence[str] = (), below: Sequence[str] = ()) -> PilImage:
    """Adds sentences above and below a picture, each on lines of its own; `RANDOM_WEIGHTS` is red."""
    Image, ImageDraw = require("PIL.Image"), require("PIL.ImageDraw")
    parts = [
        [(line, text == RANDOM_WEIGHTS) for text in texts for line in wrapped(text, picture.width - 2 * GAP)]
        for texts in (above, below)
    ]
    header, footer = (len(lines) * LINE + GAP if lines else 0 for lines in parts)
    whole = Image.new("RGB", (picture.width, header + picture.height + footer), "white")
    whole.paste(picture, (0, header))
    draw = ImageDraw.Draw(whole)
    for lines, top in zip(parts, (GAP, header + picture.height)):
        for i, (line, is_warning) in enumerate(lines):
            draw.text((GAP, top + i * LINE), line, fill=WARNING if is_warning else QUIET, font_size=SMALL)
    return whole


def wrapped(text: str, width: int) -> list[str]:
    """Breaks a sentence between words, into lines of so many pixels."""
    lines = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", SMALL) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [shortened(line, width, SMALL) for line in lines]


def shortened(text: str, width: int, font_size: int = FONT_SIZE) -> str:
    """Returns a text that is at most so many pixels wide, with … in place of its middle where it is too long."""
    for kept in range(len(text), 0, -1):
        end = kept // 2
        found = text if kept == len(text) else f"{text[: kept - end]}…{text[len(text) - end :]}"
        if text_width(found, font_size) <= width:
            return found
    return ""


def text_width(text: str, font_size: int) -> float:
    """Returns the width of a text in pixels."""
    return require("PIL.ImageFont").load_default(font_size).getlength(text)
