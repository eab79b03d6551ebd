# SPDX-License-Identifier: Apache-2.0
"""Images of any size for a ViT, cropped to whole patches, and pictures that are painted patch by patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.image_values import EIGHT_BITS, Decoded, as_picture, rescaled, resized, size_of
from ..runtime.extras import PilImage, require


GAP, CAPTION, FONT_SIZE = 8, 24, 16  # pixels


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
        scale = self.size / min(size_of(image))
        width, height = (max(self.patch_size, round(side * scale)) for side in size_of(image))
        image = self.resize(image, (width, height), require("PIL.Image").Resampling.BICUBIC)
        width, height = width - width % self.patch_size, height - height % self.patch_size
        return image[:height, :width] if isinstance(image, np.ndarray) else image.crop((0, 0, width, height))

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


def mosaic(tiles: Mapping[str, PilImage], columns: int, swatches: Mapping[str, tuple] | None = None) -> PilImage:
    """
    Puts pictures side by side, under their titles.

    Args:
        tiles: pictures by their titles.
        swatches: colors by the titles that they are shown behind.
    """
    Image, ImageDraw = require("PIL.Image"), require("PIL.ImageDraw")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width = max(tile.width for tile in tiles.values()) + GAP
    heights = [max(tile.height for tile in list(tiles.values())[i * columns :][:columns]) for i in range(rows)]
    picture = Image.new("RGB", (columns * width + GAP, sum(heights) + rows * (GAP + CAPTION) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for i, (title, tile) in enumerate(tiles.items()):
        row, column = divmod(i, columns)
        left, top = GAP + column * width, GAP + sum(heights[:row]) + row * (GAP + CAPTION)
        draw.text((left, top), title, fill="black", font_size=FONT_SIZE)
        if title in (swatches or {}):
            begin = left + draw.textlength(title, font_size=FONT_SIZE) + GAP
            draw.rectangle((begin, top + 2, begin + FONT_SIZE, top + 2 + FONT_SIZE), fill=swatches[title])
        picture.paste(tile, (left, top + CAPTION))
    return picture
