# SPDX-License-Identifier: Apache-2.0
"""Attention in pictures: heads, their masks, and all of them over the image.

The heads in colors are after figure 3 of the paper, https://arxiv.org/abs/2104.14294; the masks after `--threshold` of
https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py#L166.
"""

import colorsys
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..runtime.extras import require
from .patch_images import mosaic, paint_patches


if TYPE_CHECKING:
    from PIL import Image

COLORMAP = "inferno"
OPACITY = 0.6
DIMMED = 0.5  # brightness of the image behind the heads in colors
SHADE = 0.4  # brightness of a color where the image is black


def mass_masks(attention: torch.Tensor, mass: float) -> torch.Tensor:
    """
    The smallest set of patches that holds a share of a head's attention to all patches.

    Args:
        attention: (heads, h, w).
        mass: the share, in (0, 1].

    Returns:
        (heads, h, w), of bool.
    """
    values, order = attention.double().flatten(1).sort(dim=1, stable=True)  # ascending
    below = values.cumsum(1) / values.sum(1, keepdim=True)  # what is lost without a patch and all that have less
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, below > 1 - mass).view(attention.shape)


def head_colors(num_heads: int) -> torch.Tensor:
    """As many hues, evenly spaced: (heads, 3), in [0, 1]."""
    return torch.tensor([colorsys.hsv_to_rgb(i / num_heads, 0.9, 1.0) for i in range(num_heads)])


def stretched(attention: torch.Tensor) -> torch.Tensor:
    """Each head's attention from its least to its most, in [0, 1]: (heads, h, w)."""
    low, high = attention.amin((1, 2), keepdim=True), attention.amax((1, 2), keepdim=True)
    return (attention - low) / (high - low).clamp_min(1e-12)


def colored(values: torch.Tensor) -> torch.Tensor:
    """Colors of values in [0, 1]: (…) -> (…, 3)."""
    return torch.from_numpy(require("matplotlib").colormaps[COLORMAP](values.numpy())[..., :3])


def enlarged(maps: torch.Tensor, image: "Image.Image") -> torch.Tensor:
    """Maps of patches over the pixels of an image, smoothly: (n, h, w) -> (n, H, W)."""
    return nn.functional.interpolate(maps[None], image.size[::-1], mode="bilinear")[0]


def heads_in_colors(image: "Image.Image", attention: torch.Tensor) -> "Image.Image":
    """The image in grey, and each place in the color of the head that attends to it most, as strongly as it does.

    Each head counts relative to its own least and most.
    """
    strength, head = enlarged(stretched(attention), image).max(0)
    grey = (torch.from_numpy(require("numpy").array(image.convert("L"))) / 255)[..., None]  # (H, W, 1)
    colors = head_colors(len(attention))[head] * (SHADE + (1 - SHADE) * grey)  # (H, W, 3)
    return paint_patches(torch.lerp((grey * DIMMED).expand_as(colors), colors, strength[..., None]), 1)


def masks_in_colors(image: "Image.Image", masks: torch.Tensor, patch_size: int) -> "Image.Image":
    """The image, under the colors of the heads whose masks (heads, h, w) hold a patch; their mean where several do."""
    Image = require("PIL.Image")
    image, number = image.convert("RGB"), masks.sum(0)
    colors = torch.einsum("nhw,nc->hwc", masks.float(), head_colors(len(masks))) / number.clamp_min(1)[..., None]
    overlay = Image.blend(image, paint_patches(colors, patch_size), OPACITY)
    return Image.composite(overlay, image, paint_patches((number > 0).float(), patch_size))


def attention_pictures(
    image: "Image.Image", attention: torch.Tensor, patch_size: int, mass: float | None = None
) -> "dict[str, Image.Image]":
    """
    All pictures of an image's attention.

    Args:
        image: of whole patches.
        attention: (heads, h, w).
        mass: see [`AttentionSettings`].

    Returns:
        `head0`, …: one head, a square a patch; `heads`: all over the image, each in its color; with `mass` `mask0`, …:
        white where one head's mass is; `masks`: all over the image; at last `attention`, the mosaic of all.
    """
    Image = require("PIL.Image")
    values = stretched(attention)
    pictures = {f"head{i}": paint_patches(colored(head), patch_size) for i, head in enumerate(values)}
    pictures["heads"] = heads_in_colors(image, attention)
    if mass is not None:
        masks = mass_masks(attention, mass)
        pictures |= {f"mask{i}": paint_patches(mask.float(), patch_size) for i, mask in enumerate(masks)}
        pictures["masks"] = masks_in_colors(image, masks, patch_size)
    over_image = [stretched(attention.mean(0, keepdim=True))[0], *values]
    over_image = [paint_patches(colored(smooth), 1) for smooth in enlarged(torch.stack(over_image), image)]
    mean, *heads = (Image.blend(image.convert("RGB"), picture, OPACITY) for picture in over_image)
    tiles = {"image": image.convert("RGB"), "mean of heads": mean, "heads in colors": pictures["heads"]}
    if mass is not None:
        tiles[f"{mass:.0%} of attention"] = pictures["masks"]
    colors = (head_colors(len(attention)) * 255).int().tolist()
    swatches = {f"head {i}": tuple(color) for i, color in enumerate(colors)}
    pictures["attention"] = mosaic(tiles | dict(zip(swatches, heads)), columns=len(tiles), swatches=swatches)
    return pictures


__all__ = ["attention_pictures", "mass_masks"]
