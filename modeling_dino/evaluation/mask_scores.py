# SPDX-License-Identifier: Apache-2.0
"""How well masks match the ground truth: region similarity J and boundary accuracy F, with their statistics.

Paper: A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, Perazzi et al., CVPR 2016. Source:
https://github.com/davisvideochallenge/davis2017-evaluation/tree/30b698a691681588bbcfe0f2a7c7c680d49bb72d
(`davis2017/metrics.py` and `utils.py`).

Where we deviate: decay goes by the right frames in videos of more than 256, too, where the source's indices overflow.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn


BOUND_TH = 0.008  # how far boundaries may be apart, of the image's diagonal
RECALL_TH = 0.5  # which frames count as found
NUM_BINS = 4  # of time; decay is the first's mean without the last's


def jaccard(mask: torch.Tensor, truth: torch.Tensor) -> float:
    """
    Region similarity: the intersection's share of the union; 1 if both are empty.

    Args:
        mask, truth: (H, W), of bool.
    """
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def boundary(mask: torch.Tensor) -> torch.Tensor:
    """The pixels that differ from their neighbour to the right, below, or both: (H, W), of bool.

    In the last row and column only the neighbour within the image counts.
    """
    padded = nn.functional.pad(mask[None, None].float(), (0, 1, 0, 1), mode="replicate")[0, 0].bool()
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ both)


def dilated(boundary: torch.Tensor, radius: int) -> torch.Tensor:
    """All pixels within a distance of a boundary, in pixels: (H, W), of bool."""
    ys, xs = torch.meshgrid(*[torch.arange(-radius, radius + 1)] * 2, indexing="ij")
    disk = (xs**2 + ys**2 <= radius**2).float()
    return nn.functional.conv2d(boundary[None, None].float(), disk[None, None], padding=radius)[0, 0] > 0.5


def boundary_f(mask: torch.Tensor, truth: torch.Tensor, bound_th: float = BOUND_TH) -> float:
    """
    Boundary accuracy: the harmonic mean of precision and recall of the mask's boundary.

    Args:
        mask, truth: (H, W), of bool.
        bound_th: how far matching pixels may be apart, as a share of the diagonal, rounded up to whole pixels.
    """
    radius = math.ceil(bound_th * math.hypot(*mask.shape))
    of_mask, of_truth = boundary(mask), boundary(truth)
    num_mask, num_truth = int(of_mask.sum()), int(of_truth.sum())
    if not num_mask or not num_truth:
        return float(num_mask == num_truth)
    precision = int((of_mask & dilated(of_truth, radius)).sum()) / num_mask
    recall = int((of_truth & dilated(of_mask, radius)).sum()) / num_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True)
class Statistics:
    """Of a measure over the frames of a video: its mean, how many frames are above 0.5, and how much it falls."""

    mean: float
    recall: float
    decay: float


def statistics(values: Sequence[float]) -> Statistics:
    """
    Args:
        values: of each frame, in order.
    """
    frames = torch.tensor(values, dtype=torch.float64)
    ends = torch.linspace(1, len(frames), NUM_BINS + 1, dtype=torch.float64)
    ends = ((ends + 1e-10).round() - 1).long().tolist()  # bins share the frames at their ends, as in the source
    first, last = frames[ends[0] : ends[1] + 1], frames[ends[-2] : ends[-1] + 1]
    recall = (frames > RECALL_TH).double().mean()
    return Statistics(float(frames.mean()), float(recall), float(first.mean() - last.mean()))


@dataclass(frozen=True)
class VideoScores:
    """
    Args:
        j, f: of each object, by its number, a value for each frame that is scored.
    """

    j: dict[int, list[float]]
    f: dict[int, list[float]]

    def means(self) -> dict[str, float]:
        """`J&F`, and mean, recall and decay of J and F: means over the objects of their statistics."""
        found = {}
        for name, values in (("J", self.j), ("F", self.f)):
            objects = [asdict(statistics(frames)) for frames in values.values()]
            for key in ("mean", "recall", "decay"):
                found[f"{name} {key}"] = sum(entry[key] for entry in objects) / len(objects)
        return {"J&F": (found["J mean"] + found["F mean"]) / 2, **found}


def score_frame(mask: torch.Tensor, truth: torch.Tensor, number: int) -> tuple[float, float]:
    """J and F of an object in a frame, from the numbers of the objects (H, W)."""
    mask, truth = mask == number, truth == number
    return jaccard(mask, truth), boundary_f(mask, truth)


__all__ = ["Statistics", "VideoScores", "boundary_f", "jaccard", "score_frame", "statistics"]
