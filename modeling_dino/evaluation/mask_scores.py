# SPDX-License-Identifier: Apache-2.0
"""Measures how well masks match a ground truth: region similarity J and boundary accuracy F, with their statistics.

Paper: A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, Perazzi et al., CVPR 2016. Source:
https://github.com/davisvideochallenge/davis2017-evaluation/tree/30b698a691681588bbcfe0f2a7c7c680d49bb72d
(`davis2017/metrics.py` and `utils.py`).

Where we deviate: decay is taken from the right frames also in videos of more than 256, where the source's indices
overflow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


BOUND_TH = 0.008  # how far matching boundaries may be apart, as a share of the image's diagonal
RECALL_TH = 0.5  # frames with more than this count as found
NUM_BINS = 4  # of time; decay is the mean of the first minus that of the last


def jaccard(mask: torch.Tensor, truth: torch.Tensor) -> float:
    """Computes the region similarity J of two masks (H, W): intersection over union; 1 if both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def boundary(mask: torch.Tensor) -> torch.Tensor:
    """Finds the pixels that differ from a neighbour to the right, below, or right below within the image: (H, W)."""
    padded = nn.functional.pad(mask[None, None].float(), (0, 1, 0, 1), mode="replicate")[0, 0].bool()
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ both)


def dilate(boundary: torch.Tensor, radius: int) -> torch.Tensor:
    """Finds all pixels within a distance of a boundary, in pixels: (H, W), of bool."""
    ys, xs = torch.meshgrid(*[torch.arange(-radius, radius + 1)] * 2, indexing="ij")
    disk = (xs**2 + ys**2 <= radius**2).float()
    return nn.functional.conv2d(boundary[None, None].float(), disk[None, None], padding=radius)[0, 0] > 0.5


def boundary_f(mask: torch.Tensor, truth: torch.Tensor) -> float:
    """Computes the boundary accuracy F of masks (H, W): the harmonic mean of precision and recall of a boundary."""
    radius = math.ceil(BOUND_TH * math.hypot(*mask.shape))
    of_mask, of_truth = boundary(mask), boundary(truth)
    num_mask, num_truth = int(of_mask.sum()), int(of_truth.sum())
    if not num_mask or not num_truth:
        return float(num_mask == num_truth)
    precision = int((of_mask & dilate(of_truth, radius)).sum()) / num_mask
    recall = int((of_truth & dilate(of_mask, radius)).sum()) / num_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Computes the mean of a measure over a video's frames, its recall (the share above 0.5), and its decay."""
    frames = torch.tensor(values, dtype=torch.float64)
    ends = torch.linspace(1, len(frames), NUM_BINS + 1, dtype=torch.float64)
    ends = ((ends + 1e-10).round() - 1).long().tolist()  # bins share the frames at their ends, as in the source
    first, last = frames[ends[0] : ends[1] + 1], frames[ends[-2] : ends[-1] + 1]
    recall = (frames > RECALL_TH).double().mean()
    return {"mean": float(frames.mean()), "recall": float(recall), "decay": float(first.mean() - last.mean())}


@dataclass(frozen=True)
class VideoScores:
    """J and F of each object, by its number: a value for each frame that is scored."""

    j: dict[int, list[float]]
    f: dict[int, list[float]]

    def means(self) -> dict[str, float]:
        """Computes `J&F`, and the means over the objects of mean, recall and decay of J and F."""
        found = {}
        for name, values in (("J", self.j), ("F", self.f)):
            objects = [statistics(frames) for frames in values.values()]
            for key in objects[0]:
                found[f"{name} {key}"] = sum(entry[key] for entry in objects) / len(objects)
        return {"J&F": (found["J mean"] + found["F mean"]) / 2, **found}
