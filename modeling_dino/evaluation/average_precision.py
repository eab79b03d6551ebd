# SPDX-License-Identifier: Apache-2.0
"""Computes the average precision of a ranking, which is high where the images that are looked for come first.

The trapezoidal kind and the precision at k are those of the original's retrieval and copy detection,
https://github.com/facebookresearch/dino/blob/7c446df/utils.py (`compute_ap`, `compute_map`) and its
eval_copy_detection.py, which have them from https://github.com/filipradenovic/revisitop; paper:
https://arxiv.org/abs/1803.11285. The plain kind is the mean of the precision at each positive, as scikit-learn has it.

Where we deviate: all images are ranked, where the original's copy detection looks at the first 20; of images that are
equally similar, the negative ones come first, so that a model that tells no images apart gains nothing.
"""

from collections.abc import Sequence

import numpy as np


PRECISION_AT = (1, 5, 10)  # https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py


def average_precision(
    similarities: np.ndarray,
    positive: np.ndarray,
    ignored: np.ndarray | None = None,
    *,
    trapezoidal: bool = False,
    precision_at: Sequence[int] = PRECISION_AT,
) -> tuple[float, list[float]]:
    """
    Computes the average precision, and the precision at each k, of one query, in [0, 1].

    Args:
        similarities: similarities with the images of an index, (N,).
        positive: the images that are looked for, (N,), bool, at least one.
        ignored: the images that are left out of the ranking, (N,), bool; none is positive.
        trapezoidal: take the area under the line through the precision before and at each positive image, instead of
            the mean precision at each.
        precision_at: each k; where the last positive comes earlier, the precision there counts, as in the original.
    """
    found = np.sort(similarities[positive])[::-1]
    others = np.sort(similarities[~positive if ignored is None else ~(positive | ignored)])
    before = np.arange(len(found))  # positives that come earlier
    rank = before + len(others) - np.searchsorted(others, found)  # of each positive, from 0
    precision = (before + 1) / (rank + 1)
    if trapezoidal:
        precision = (precision + np.where(rank == 0, 1, before / np.maximum(rank, 1))) / 2
    seen = [min(k, int(rank[-1]) + 1) for k in precision_at]
    return float(precision.mean()), [int((rank < k).sum()) / k for k in seen]
