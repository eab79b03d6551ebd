# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Pictures of what the CLS token attends to.

As https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py, but the aspect ratio is kept.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .extras import require
from .images import read_image
from .modeling_dino import DinoModel
from .whole_files import whole_file


if TYPE_CHECKING:
    from PIL import Image

COLORMAP = "inferno"
MOSAIC_COLUMNS = 4


def crop_to_patches(image: "Image.Image", size: int, patch_size: int) -> "Image.Image":
    """The image with its shorter side at `size` pixels, cropped at the bottom and right to whole patches."""
    scale = size / min(image.size)
    width, height = (max(patch_size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), require("PIL.Image").Resampling.BICUBIC)
    return resized.crop((0, 0, width - width % patch_size, height - height % patch_size))


def to_pixel_values(image: "Image.Image", mean: list[float], std: list[float]) -> torch.Tensor:
    """A picture as a normalised batch of one: (1, C, H, W)."""
    pixels = torch.from_numpy(require("numpy").array(image)).reshape(image.height, image.width, -1)
    return ((pixels / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).unsqueeze(0)


def colored(attention: torch.Tensor, patch_size: int) -> "Image.Image":
    """One head's attention (h, w) in colours from its least to its most, a square of patch size each."""
    np, Image = require("numpy"), require("PIL.Image")
    low, high = attention.min(), attention.max()
    values = ((attention - low) / (high - low).clamp_min(1e-12)).numpy()
    rgb = require("matplotlib").colormaps[COLORMAP](values)[..., :3]
    picture = Image.fromarray(np.uint8(rgb * 255 + 0.5))
    return picture.resize((attention.shape[1] * patch_size, attention.shape[0] * patch_size), Image.Resampling.NEAREST)


def mosaic(image: "Image.Image", attention: torch.Tensor) -> "Image.Image":
    """The image, then the mean of the heads and each head (heads, h, w) laid over it."""
    Image, ImageDraw = require("PIL.Image"), require("PIL.ImageDraw")
    image = image.convert("RGB")
    smooth = nn.functional.interpolate(
        torch.cat([attention.mean(0, keepdim=True), attention])[None], image.size[::-1], mode="bilinear"
    )[0]
    tiles = [image, *(Image.blend(image, colored(overlay, 1), 0.6) for overlay in smooth)]
    titles = ["image", "mean of heads", *(f"head {i}" for i in range(len(attention)))]
    columns = min(MOSAIC_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    gap, caption = 8, 24
    width, height = image.width + gap, image.height + gap + caption
    picture = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    draw = ImageDraw.Draw(picture)
    for i, (tile, title) in enumerate(zip(tiles, titles)):
        left, top = gap + i % columns * width, gap + i // columns * height
        draw.text((left, top), title, fill="black", font_size=16)
        picture.paste(tile, (left, top + caption))
    return picture


@torch.inference_mode()
def draw_attention(
    model: DinoModel,
    image_path: str | os.PathLike,
    output: str | os.PathLike,
    mean: list[float],
    std: list[float],
    size: int = 480,
    layer: int = -1,
) -> list[Path]:
    """
    Draws what the CLS token attends to: `NAME-head0.png`, …, and `NAME-attention.png`, all of them over the image.

    Args:
        mean, std: of each channel, in [0, 1], as the model was trained.
        size: to which the shorter side of the image is resized, in pixels.
        layer: which block, counted from 0; negative ones from the end.

    Returns:
        the files, the mosaic last.

    Raises:
        ValueError: for a ResNet, if there is no such layer, or if the image cannot be read.
    """
    model.check_attention(True)
    require("matplotlib")
    patch_size = model.config.patch_size
    if size < patch_size:
        raise ValueError(f"size={size} must be at least one patch of {patch_size} pixels")
    try:
        image, _ = read_image(str(image_path), model.config.num_channels)
    except ValueError as error:
        raise ValueError(f"cannot read {image_path}: {error}") from error
    image = crop_to_patches(image, size, patch_size)
    attention = model.get_cls_attention(to_pixel_values(image, mean, std).to(model.device), layer)[0].float().cpu()
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    name = Path(image_path).stem
    pictures = {f"{name}-head{i}.png": colored(head, patch_size) for i, head in enumerate(attention)}
    pictures[f"{name}-attention.png"] = mosaic(image, attention)
    for file, picture in pictures.items():
        with whole_file(output / file) as partial:
            picture.save(partial, format="PNG")
    return [output / file for file in pictures]


__all__ = ["draw_attention"]
