# SPDX-License-Identifier: Apache-2.0
"""Turns the attention of an image into pictures: its heads, their masks, and all of them over the image.

The heads in colors are after figure 3 of the paper, https://arxiv.org/abs/2104.14294; the masks after `--threshold` of
https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py#L166.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..runtime.extras import PilImage, require
from .patch_images import enlarge, even_hues, mosaic, paint_patches


COLORMAP = "inferno"
OPACITY = 0.6
DIMMED = 0.5  # brightness of the image behind the heads in colors
SHADE = 0.4  # brightness of a color where the image is black
HEADS_IN_ROW = 3  # of the mosaic
BRIGHTEST = 0.99  # share of the patches below the end of a color map, so that a few do not take all of it
LEGEND = (
    "Each heat map runs from its least attention, in black, to the value that 1 % of its patches exceed, in yellow. "
    "The colors of heads mark where a head spends a greater share of its attention than the others do."
)


def attention_pictures(
    image: PilImage, attention: torch.Tensor, patch_size: int, about: Sequence[str] = (), mass: float | None = None
) -> dict[str, PilImage]:
    """
    Draws all pictures of an image's attention.

    Args:
        image: of whole patches.
        attention: (heads, h, w).
        about: sentences about the model, which the mosaic has below.
        mass: share of each head's attention that a mask holds, in (0, 1]; None for no masks.

    Returns:
        pictures by kind, in this order: `head0`, … show one head each, a square a patch; `heads` shows all heads over
        the image, each in its color; with `mass`, `mask0`, … are white where the mask of one head is, and `masks`
        shows all masks over the image; `attention` is the mosaic of all.
    """
    values, colors = stretch(attention), even_hues(len(attention))
    pictures = {f"head{i}": paint_patches(apply_colormap(head), patch_size) for i, head in enumerate(values)}
    pictures["heads"] = draw_heads(image, attention, colors)
    (mean,) = stretch(attention.mean(0, keepdim=True))
    first = {"image": image.convert("RGB"), "mean of heads": paint_patches(apply_colormap(mean), patch_size)}
    first |= {"mean over the image": draw_over(image, mean), "heads in colors": pictures["heads"]}
    if mass is not None:
        masks = mass_masks(attention, mass)
        pictures |= {f"mask{i}": paint_patches(mask.float(), patch_size) for i, mask in enumerate(masks)}
        pictures["masks"] = first[f"{mass:.0%} of attention"] = draw_masks(image, masks, colors, patch_size)
    rows, swatches, ends = [first], {}, upper_ends(attention) / attention.mean((1, 2))
    for i, (head, color, end) in enumerate(zip(values, (colors * 255).int().tolist(), ends.tolist())):
        if i % HEADS_IN_ROW == 0:
            rows.append({})
        title = f"head {i}, yellow: {end:.1f}x mean"
        rows[-1] |= {title: pictures[f"head{i}"], f"head {i} over the image": draw_over(image, head)}
        swatches[title] = tuple(color)
    pictures["attention"] = mosaic(rows, [*about, LEGEND], swatches)
    return pictures


def mass_masks(attention: torch.Tensor, mass: float) -> torch.Tensor:
    """Finds the fewest patches that hold a share of each head's attention to all patches: (heads, h, w), of bool."""
    values, order = attention.double().flatten(1).sort(dim=1, stable=True)  # ascending
    below = values.cumsum(1) / values.sum(1, keepdim=True)  # what is lost without a patch and all that have less
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, below > 1 - mass).view(attention.shape)


def stretch(attention: torch.Tensor) -> torch.Tensor:
    """Scales the attention of each head to [0, 1], from its minimum to its 99th percentile: (heads, h, w)."""
    low, high = attention.amin((1, 2)), upper_ends(attention)
    return ((attention - low[:, None, None]) / (high - low).clamp_min(1e-12)[:, None, None]).clamp_max(1)


def upper_ends(attention: torch.Tensor) -> torch.Tensor:
    """Returns the values that the color map of each head ends at: (heads, h, w) -> (heads,)."""
    return attention.flatten(1).quantile(BRIGHTEST, dim=1)


def apply_colormap(values: torch.Tensor) -> torch.Tensor:
    """Returns the colors of values in [0, 1]: (…) -> (…, 3)."""
    return torch.from_numpy(require("matplotlib").colormaps[COLORMAP](values.numpy())[..., :3])


def share_of_less(attention: torch.Tensor) -> torch.Tensor:
    """
    Computes how much of a head's attention goes to patches that it attends to less than to this one, divided by the
    greatest such share of the head: (heads, h, w), in [0, 1], of each head alike, whether it is broad or narrow.
    """
    flat = attention.double().flatten(1)
    ascending = flat.sort(dim=1).values
    mass_before = nn.functional.pad(ascending.cumsum(1), (1, 0))  # of the patches in front, (heads, 1 + h * w)
    less = mass_before.gather(1, torch.searchsorted(ascending, flat))
    return (less / less.amax(1, keepdim=True).clamp_min(1e-12)).float().view(attention.shape)


def draw_over(image: PilImage, values: torch.Tensor) -> PilImage:
    """Draws a map (h, w) in [0, 1] over the image in grey, whose own colors would mix with those of the map."""
    smooth = enlarge(values[None], image.size[::-1])[0]
    grey = image.convert("L").convert("RGB")
    return require("PIL.Image").blend(grey, paint_patches(apply_colormap(smooth), 1), OPACITY)


def draw_heads(image: PilImage, attention: torch.Tensor, colors: torch.Tensor) -> PilImage:
    """
    Draws the image in grey, and each pixel in the color of the head that attends to it with the greatest share of its
    own attention, (heads, h, w); so a head that attends to all of the image a little does not hide the others.
    """
    size = image.size[::-1]
    shares = attention / attention.sum((1, 2), keepdim=True)
    head = enlarge(shares, size).argmax(0, keepdim=True)
    strength = enlarge(share_of_less(attention), size).gather(0, head)[0]
    grey = (torch.from_numpy(np.array(image.convert("L"))) / 255)[..., None]  # (H, W, 1)
    shaded = colors[head[0]] * (SHADE + (1 - SHADE) * grey)  # (H, W, 3)
    return paint_patches(torch.lerp((grey * DIMMED).expand_as(shaded), shaded, strength[..., None]), 1)


def draw_masks(image: PilImage, masks: torch.Tensor, colors: torch.Tensor, patch_size: int) -> PilImage:
    """
    Draws the masks of heads (heads, h, w) over the image in grey, in the mean of their colors where several overlap.
    """
    Image = require("PIL.Image")
    image, number = image.convert("L").convert("RGB"), masks.sum(0)
    mean = torch.einsum("nhw,nc->hwc", masks.float(), colors) / number.clamp_min(1)[..., None]
    overlay = Image.blend(image, paint_patches(mean, patch_size), OPACITY)
    return Image.composite(overlay, image, paint_patches((number > 0).float(), patch_size))
