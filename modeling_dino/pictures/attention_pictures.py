# SPDX-License-Identifier: Apache-2.0
"""Turns the attention of an image into pictures: its heads, their masks, and all of them over the image.

The heads in colors are after figure 3 of the paper, https://arxiv.org/abs/2104.14294; the masks after `--threshold` of
https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py#L166.
"""

import colorsys

import numpy as np
import torch
from torch import nn

from ..runtime.extras import PilImage, require
from .patch_images import mosaic, paint_patches


COLORMAP = "inferno"
OPACITY = 0.6
DIMMED = 0.5  # brightness of the image behind the heads in colors
SHADE = 0.4  # brightness of a color where the image is black


def attention_pictures(
    image: PilImage, attention: torch.Tensor, patch_size: int, mass: float | None = None
) -> dict[str, PilImage]:
    """
    Draws all pictures of an image's attention.

    Args:
        image: of whole patches.
        attention: (heads, h, w).
        mass: share of each head's attention that a mask holds, in (0, 1]; None for no masks.

    Returns:
        pictures by kind, in this order: `head0`, … show one head each, a square a patch; `heads` shows all heads over
        the image, each in its color; with `mass`, `mask0`, … are white where the mask of one head is, and `masks`
        shows all masks over the image; `attention` is the mosaic of all.
    """
    Image = require("PIL.Image")
    values, colors = stretch(attention), head_colors(len(attention))
    pictures = {f"head{i}": paint_patches(apply_colormap(head), patch_size) for i, head in enumerate(values)}
    pictures["heads"] = draw_heads(image, values, colors)
    tiles = {"heads in colors": pictures["heads"]}
    if mass is not None:
        masks = mass_masks(attention, mass)
        pictures |= {f"mask{i}": paint_patches(mask.float(), patch_size) for i, mask in enumerate(masks)}
        pictures["masks"] = tiles[f"{mass:.0%} of attention"] = draw_masks(image, masks, colors, patch_size)
    image = image.convert("RGB")
    mean = stretch(attention.mean(0, keepdim=True))
    over_image = [paint_patches(apply_colormap(smooth), 1) for smooth in enlarge(torch.cat([mean, values]), image)]
    mean, *heads = (Image.blend(image, picture, OPACITY) for picture in over_image)
    tiles = {"image": image, "mean of heads": mean, **tiles}
    swatches = {f"head {i}": tuple(color) for i, color in enumerate((colors * 255).int().tolist())}
    pictures["attention"] = mosaic(tiles | dict(zip(swatches, heads)), columns=len(tiles), swatches=swatches)
    return pictures


def mass_masks(attention: torch.Tensor, mass: float) -> torch.Tensor:
    """Finds the fewest patches that hold a share of each head's attention to all patches: (heads, h, w), of bool."""
    values, order = attention.double().flatten(1).sort(dim=1, stable=True)  # ascending
    below = values.cumsum(1) / values.sum(1, keepdim=True)  # what is lost without a patch and all that have less
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, below > 1 - mass).view(attention.shape)


def head_colors(num_heads: int) -> torch.Tensor:
    """Returns a color for each head, with hues evenly spaced: (heads, 3), in [0, 1]."""
    return torch.tensor([colorsys.hsv_to_rgb(i / num_heads, 0.9, 1.0) for i in range(num_heads)])


def stretch(attention: torch.Tensor) -> torch.Tensor:
    """Scales the attention of each head to [0, 1], from its minimum to its maximum: (heads, h, w)."""
    low, high = attention.amin((1, 2), keepdim=True), attention.amax((1, 2), keepdim=True)
    return (attention - low) / (high - low).clamp_min(1e-12)


def apply_colormap(values: torch.Tensor) -> torch.Tensor:
    """Returns the colors of values in [0, 1]: (…) -> (…, 3)."""
    return torch.from_numpy(require("matplotlib").colormaps[COLORMAP](values.numpy())[..., :3])


def enlarge(maps: torch.Tensor, image: PilImage) -> torch.Tensor:
    """Interpolates maps of patches to the pixels of an image: (n, h, w) -> (n, H, W)."""
    return nn.functional.interpolate(maps[None], image.size[::-1], mode="bilinear")[0]


def draw_heads(image: PilImage, values: torch.Tensor, colors: torch.Tensor) -> PilImage:
    """Draws the image in grey, and each pixel in the color of the head with the greatest value, (heads, h, w)."""
    strength, head = enlarge(values, image).max(0)
    grey = (torch.from_numpy(np.array(image.convert("L"))) / 255)[..., None]  # (H, W, 1)
    shaded = colors[head] * (SHADE + (1 - SHADE) * grey)  # (H, W, 3)
    return paint_patches(torch.lerp((grey * DIMMED).expand_as(shaded), shaded, strength[..., None]), 1)


def draw_masks(image: PilImage, masks: torch.Tensor, colors: torch.Tensor, patch_size: int) -> PilImage:
    """Draws the masks of heads (heads, h, w) over the image, in the mean of their colors where several overlap."""
    Image = require("PIL.Image")
    image, number = image.convert("RGB"), masks.sum(0)
    mean = torch.einsum("nhw,nc->hwc", masks.float(), colors) / number.clamp_min(1)[..., None]
    overlay = Image.blend(image, paint_patches(mean, patch_size), OPACITY)
    return Image.composite(overlay, image, paint_patches((number > 0).float(), patch_size))
