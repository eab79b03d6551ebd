# SPDX-License-Identifier: Apache-2.0
"""Images of any size for a ViT, cut to whole patches, and pictures that are painted patch by patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..configuration_dino import DinoConfig
from ..hub.loading import load_image_processor
from ..runtime.extras import require


if TYPE_CHECKING:
    from PIL import Image

GAP, CAPTION, FONT_SIZE = 8, 24, 16  # pixels


def crop_to_patches(image: "Image.Image", size: int, patch_size: int) -> "Image.Image":
    """The image with its shorter side at `size` pixels, cropped at the bottom and right to whole patches."""
    scale = size / min(image.size)
    width, height = (max(patch_size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), require("PIL.Image").Resampling.BICUBIC)
    return resized.crop((0, 0, width - width % patch_size, height - height % patch_size))


def to_pixel_values(image: "Image.Image", mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A picture as a normalised batch of one: (1, C, H, W)."""
    pixels = torch.from_numpy(require("numpy").array(image)).reshape(image.height, image.width, -1)
    return ((pixels / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).unsqueeze(0)


@dataclass(frozen=True)
class PatchTransform:
    """
    What stands before a model that looks at whole images.

    Args:
        patch_size: of the model, in pixels.
        mean, std: of each channel, in [0, 1], as the model was trained.
        size: to which the shorter side is resized, in pixels.

    Raises:
        ValueError: if that is less than a patch.
    """

    patch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    size: int = 480

    def __post_init__(self):
        if self.size < self.patch_size:
            raise ValueError(f"size={self.size} must be at least one patch of {self.patch_size} pixels")

    @classmethod
    def of_model(cls, name: str, config: DinoConfig, size: int = 480) -> "PatchTransform":
        """That of a saved model: with the mean and standard deviation of its image processor."""
        processor = load_image_processor(name, config)
        return cls(config.patch_size, processor.image_mean, processor.image_std, size)

    def crop(self, image: "Image.Image") -> "Image.Image":
        """What the model will see of an image."""
        return crop_to_patches(image, self.size, self.patch_size)

    def pixel_values(self, cropped: "Image.Image") -> torch.Tensor:
        """(1, C, H, W)."""
        return to_pixel_values(cropped, self.mean, self.std)


def paint_patches(colors: torch.Tensor, patch_size: int) -> "Image.Image":
    """A square of patch size for each color: (h, w, 3) in [0, 1], or (h, w) from black to white."""
    Image = require("PIL.Image")
    picture = Image.fromarray((colors * 255 + 0.5).to(torch.uint8).numpy())
    return picture.resize((colors.shape[1] * patch_size, colors.shape[0] * patch_size), Image.Resampling.NEAREST)


def mosaic(
    tiles: Mapping[str, "Image.Image"], columns: int, swatches: Mapping[str, tuple] | None = None
) -> "Image.Image":
    """
    Pictures side by side, under their titles.

    Args:
        tiles: by title.
        swatches: a color by title, shown behind it.
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


__all__ = ["PatchTransform", "crop_to_patches", "mosaic", "paint_patches", "to_pixel_values"]
