# SPDX-License-Identifier: Apache-2.0
"""Carries masks of objects from frame to frame by the similarity of patch tokens.

Source: https://github.com/facebookresearch/dino/blob/7c446df/eval_video_segmentation.py, table 5 of the paper.

Each patch takes its label from the few most similar patches of the first frame and of some frames before it, within a
neighbourhood. Where we deviate: the affinities of a row of patches are computed at a time, and only to the rows in its
neighbourhood, so that the (h * w)^2 affinities to each frame are never in memory together; frames are resized with
antialiasing, and normalised as everywhere else (the original's standard deviation of red is 0.228 here); and a side
that is to be a multiple of 64 is at least as long as the other.

Letters in shapes: h x w patches, D width, K objects and the background.
"""

from collections import deque

import numpy as np
import torch
from torch import nn

from ..runtime.extras import require
from .options import PropagationSettings


SIDE_MULTIPLE = 64  # pixels; of the longer side, as in the original


def video_size(width: int, height: int, size: int, patch_size: int) -> tuple[int, int]:
    """
    Returns the width and height of resized frames: the shorter side is `size`, the longer a multiple of 64.

    Both are whole patches: the longer is a multiple of the patch where 64 pixels are not, or where it is shorter.
    """
    short = size - size % patch_size
    long = size * max(width, height) / min(width, height)
    multiple = SIDE_MULTIPLE if SIDE_MULTIPLE % patch_size == 0 and long >= SIDE_MULTIPLE else patch_size
    long = max(short, int(long // multiple * multiple))
    return (short, long) if height > width else (long, short)


class MaskPropagation:
    """
    Finds the labels of patches, frame by frame.

    Args:
        features: of the first frame's patches: (h, w, D).
        labels: of the first frame's patches: (K, h, w), 1 where an object is.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, settings: PropagationSettings):
        self.settings = settings
        self._first = nn.functional.normalize(features, dim=-1), labels
        self._last = deque(maxlen=settings.num_last_frames)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Returns how much of each label the next frame's patches take: (h, w, D) -> (K, h, w), which sum to 1."""
        features = nn.functional.normalize(features, dim=-1)
        frames = [self._first, *self._last]
        sources = torch.stack([source for source, _ in frames])  # (frames, h, w, D)
        source_labels = torch.stack([labels for _, labels in frames], dim=1)  # (K, frames, h, w)
        rows = [self._labels_of_row(i, row, sources, source_labels) for i, row in enumerate(features)]
        labels = torch.stack(rows, dim=1)
        self._last.append((features, labels))
        return labels

    def _labels_of_row(
        self, i: int, row: torch.Tensor, sources: torch.Tensor, source_labels: torch.Tensor
    ) -> torch.Tensor:
        """Finds the labels of row i, (w, D), from the patches of all source frames: (K, w)."""
        height, width = sources.shape[1:3]
        radius = self.settings.radius or max(height, width)
        near = slice(max(0, i - radius), i + radius + 1)
        cosine = torch.einsum("wd,fyxd->wfyx", row, sources[:, near])
        columns = torch.arange(width, device=row.device)
        is_far = (columns[:, None] - columns).abs() > radius
        cosine = cosine.masked_fill(is_far[:, None, None], -torch.inf).flatten(1)  # (w, sources)
        least = cosine.topk(min(self.settings.top_k, cosine.shape[1]), dim=1).values[:, -1:]
        cosine = cosine.masked_fill(cosine < least, -torch.inf)  # of equal ones all stay, as in the original
        affinity = (cosine / self.settings.temperature).softmax(1)  # exp, and divided by its sum over the sources
        return source_labels[:, :, near].flatten(1) @ affinity.T


def grid_labels(objects: torch.Tensor, numbers: list[int], grid: tuple[int, int]) -> torch.Tensor:
    """
    Returns the labels of patches, from the pixel in the middle of each.

    Args:
        objects: (H, W), numbers of the objects.
        numbers: the objects to label; the background is added as the first.
        grid: h and w.

    Returns:
        (K, h, w), of float.
    """
    patches = resize_nearest(objects, grid)
    return torch.stack([patches == number for number in (0, *numbers)]).float()


def pixel_objects(labels: torch.Tensor, numbers: list[int], patch_size: int, size: tuple[int, int]) -> torch.Tensor:
    """
    Returns the objects of pixels.

    Labels are interpolated, each is scaled to [0, 1] from its minimum to its maximum, and the greatest counts.

    Args:
        labels: (K, h, w).
        size: height and width of the result in pixels.

    Returns:
        (H, W), of uint8.
    """
    maps = nn.functional.interpolate(labels[None], scale_factor=patch_size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = ((maps - low) / (high - low)).where(high > low, maps)  # a constant label stays as it is
    objects = torch.tensor([0, *numbers], dtype=torch.uint8)[maps.argmax(0).cpu()]
    return resize_nearest(objects, size)


def resize_nearest(objects: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes (H, W), of uint8, to the nearest values; with Pillow, which rounds as the original does."""
    Image = require("PIL.Image")
    picture = Image.fromarray(objects.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture))
