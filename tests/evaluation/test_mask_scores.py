import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from modeling_dino.evaluation.mask_scores import VideoScores, boundary_f, jaccard, statistics


pytestmark = pytest.mark.usefixtures("one_thread")


def square(top: int, left: int, side: int, shape: tuple[int, int] = (20, 20)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY, FULL = square(0, 0, 0), square(0, 0, 20)


def test_jaccard_by_hand():
    # two squares of 16 pixels that share 2 x 3
    assert jaccard(square(2, 2, 4), square(4, 3, 4)) == 6 / (16 + 16 - 6)
    assert jaccard(square(2, 2, 4), square(2, 2, 4)) == 1
    assert jaccard(square(2, 2, 4), square(10, 10, 4)) == 0
    assert jaccard(EMPTY, EMPTY) == 1
    assert jaccard(EMPTY, FULL) == 0


def test_boundary_by_hand():
    # On 20 x 20 pixels the bound is one pixel, ceil(0.008 * 28.3). The boundary of a square of side s that touches no
    # edge is the ring of side s + 1 from its upper left corner outwards: 4 s pixels.
    assert boundary_f(square(5, 5, 6), square(5, 5, 6)) == 1
    assert boundary_f(square(5, 5, 6), square(5, 6, 6)) == 1  # off by the one pixel that is allowed
    # A square of 6 in one of 10, two pixels apart on each side: no pixel of either is within one of the other.
    assert boundary_f(square(5, 5, 6), square(3, 3, 10)) == 0
    # Off by three pixels to the right: of rows 4 and 10 of the boundary 4 pixels lie on the other's, one more within
    # a pixel of it; so do the ends of the column that stands on them, but no other column.
    assert boundary_f(square(5, 5, 6), square(5, 8, 6)) == (2 * 5 + 2) / 24
    assert boundary_f(EMPTY, EMPTY) == boundary_f(EMPTY, FULL) == 1  # neither has a boundary
    assert boundary_f(square(5, 5, 6), EMPTY) == boundary_f(EMPTY, square(5, 5, 6)) == 0


def second_boundary_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """From the definition: pixel by pixel, and by distances."""

    def edges(mask):
        height, width = mask.shape
        found = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                beside = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
                beside = [(min(j, height - 1), min(i, width - 1)) for j, i in beside]
                found[y, x] = any(mask[place] != mask[y, x] for place in beside)
        return found

    ours, theirs = edges(mask), edges(truth)
    radius = math.ceil(0.008 * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ndimage.distance_transform_edt(~theirs)[ours] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~ours)[theirs] <= radius).mean()
    return 2 / (1 / precision + 1 / recall) if precision and recall else 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(60, 90), (131, 64), (200, 220)])
def test_both_equal_a_second_implementation(shape):
    generator = np.random.default_rng(0)
    for smoothness in (1, 3, 8):
        noise = ndimage.gaussian_filter(generator.normal(size=shape), smoothness)
        other = ndimage.shift(noise, (1.5, -2)) + ndimage.gaussian_filter(generator.normal(size=shape), smoothness) / 2
        mask, truth = noise > 0, other > 0
        ours = boundary_f(torch.from_numpy(mask), torch.from_numpy(truth))
        assert ours == pytest.approx(second_boundary_f(mask, truth), rel=1e-12)
        assert 0.05 < ours < 1
        expected = np.logical_and(mask, truth).sum() / np.logical_or(mask, truth).sum()
        assert jaccard(torch.from_numpy(mask), torch.from_numpy(truth)) == expected


def second_decay(values: list[float]) -> float:
    """By the bins' ends as fractions: frame numbers 1, …, n, whose quarters are rounded, halves up."""
    n = len(values)
    ends = [math.floor(1 + (n - 1) * i / 4 + 0.5) - 1 for i in range(5)]
    return float(np.mean(values[ends[0] : ends[1] + 1]) - np.mean(values[ends[3] : ends[4] + 1]))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 8, 68, 300])
def test_statistics(num_frames):
    values = np.random.default_rng(num_frames).uniform(size=num_frames).tolist()
    found = statistics(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["recall"] == pytest.approx(np.mean([value > 0.5 for value in values]))
    assert found["decay"] == pytest.approx(second_decay(values), abs=1e-12)


def test_statistics_by_hand():
    # five frames: bins 1-2, 2-3, 3-4, 4-5
    found = statistics([1.0, 0.8, 0.5, 0.4, 0.2])
    assert found["mean"] == pytest.approx(0.58)
    assert found["recall"] == pytest.approx(0.4)  # above, not at, 0.5
    assert found["decay"] == pytest.approx(0.9 - 0.3)
    means = VideoScores({1: [1.0, 0.8], 3: [0.4, 0.2]}, {1: [0.5, 0.5], 3: [0.7, 0.9]}).means()
    assert means["J mean"] == pytest.approx(0.6)
    assert means["F mean"] == pytest.approx(0.65)
    assert means["J&F"] == pytest.approx(0.625)
    assert means["J recall"] == 0.5
    assert means["F recall"] == 0.5
