# SPDX-License-Identifier: Apache-2.0
"""Masks of objects carried from frame to frame by the likeness of patch tokens.

Source: https://github.com/facebookresearch/dino/blob/7c446df/eval_video_segmentation.py, table 5 of the paper.

Each patch takes its label from the few most alike patches of the first frame and of some frames before it, within a
neighbourhood. Where we deviate: the affinities of a row of patches are computed at a time, and only to the rows in its
neighbourhood, so that the (h * w)^2 affinities to each frame are never in memory together; frames are resized with
antialiasing, and normalised as for all else (the original's standard deviation of red is 0.228 here); and a side that
is to be a multiple of 64 is at least as long as the other.

Letters in shapes: h x w patches, D width, K objects and the background.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import nn

from ..runtime.extras import require


SIDE_MULTIPLE = 64  # pixels; of the longer side, as in the original


@dataclass(frozen=True)
class PropagationSettings:
    """
    Args:
        num_last_frames: how many frames before it, beside the first, a frame takes its labels from.
        radius: how far apart, in patches, two are that may be compared; 0 for any distance.
        top_k: from how many patches, of all these frames, a patch takes its label.
        temperature: of the affinity exp(cosine / temperature).

    Raises:
        ValueError: if a value cannot work.
    """

    num_last_frames: int = 7
    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1

    def __post_init__(self):
        for name, least in (("num_last_frames", 0), ("radius", 0), ("top_k", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")


def video_size(width: int, height: int, size: int, patch_size: int) -> tuple[int, int]:
    """
    Width and height to which frames are resized: the shorter side to `size`, the longer to a multiple of 64.

    Both are whole patches: where 64 pixels are not, or the side is shorter, a multiple of the patch stands for them.
    """
    short = size - size % patch_size
    long = size * max(width, height) / min(width, height)
    multiple = SIDE_MULTIPLE if SIDE_MULTIPLE % patch_size == 0 and long >= SIDE_MULTIPLE else patch_size
    long = max(short, int(long // multiple * multiple))
    return (short, long) if height > width else (long, short)


class MaskPropagation:
    """
    The labels of patches, frame by frame.

    Args:
        features: (h, w, D), of the first frame's patches.
        labels: (K, h, w), theirs: 1 where an object is.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, settings: PropagationSettings):
        self.settings = settings
        self._first = nn.functional.normalize(features, dim=-1), labels
        self._last = deque(maxlen=settings.num_last_frames)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: (h, w, D), of the next frame's patches.

        Returns:
            (K, h, w): how much of each label a patch takes; they sum to 1.
        """
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
        """Of row i, (w, D), from all frames: (K, w)."""
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
    Labels of patches, from the pixel in the middle of each.

    Args:
        objects: (H, W), numbers of the objects.
        numbers: which there are; the background is added.
        grid: h and w.

    Returns:
        (K, h, w), of float.
    """
    patches = _resized(objects, grid)
    return torch.stack([patches == number for number in (0, *numbers)]).float()


def pixel_objects(labels: torch.Tensor, numbers: list[int], patch_size: int, size: tuple[int, int]) -> torch.Tensor:
    """
    The objects of pixels: labels are enlarged smoothly, each from its least to its most, and the greatest counts.

    Args:
        labels: (K, h, w).
        size: height and width of the result in pixels.

    Returns:
        (H, W), of uint8.
    """
    maps = nn.functional.interpolate(labels[None], scale_factor=patch_size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = ((maps - low) / (high - low)).where(high > low, maps)  # what is the same everywhere stays
    objects = torch.tensor([0, *numbers], dtype=torch.uint8)[maps.argmax(0).cpu()]
    return _resized(objects, size)


def _resized(objects: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(H, W), of uint8, to another height and width by the nearest; by Pillow, whose rounding the original has."""
    np, Image = require("numpy"), require("PIL.Image")
    picture = Image.fromarray(objects.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture))


__all__ = ["MaskPropagation", "PropagationSettings", "grid_labels", "pixel_objects", "video_size"]
