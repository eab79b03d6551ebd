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
"""Average precision of rankings: whether what is alike comes first.

The trapezoidal kind and the precision at k are those of the original's retrieval and copy detection,
https://github.com/facebookresearch/dino/blob/7c446df/utils.py (`compute_ap`, `compute_map`) and its
eval_copy_detection.py, which have them from https://github.com/filipradenovic/revisitop; paper:
https://arxiv.org/abs/1803.11285. The plain kind is the mean of the precision at each positive, as scikit-learn has it.

Where we deviate: all images are ranked, where the original's copy detection looks at the first 20.

As a loop, for one ranking without the images to ignore:

    found = 0
    for rank, is_positive in enumerate(ranking):  # from 0
        if is_positive:
            before = found / rank if rank else 1
            found += 1
            at = found / (rank + 1)
            ap += ((before + at) / 2 if trapezoidal else at) / num_positives
"""

from collections.abc import Sequence

import torch


PRECISION_AT = (1, 5, 10)  # https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py


@torch.inference_mode()
def average_precision(
    similarities: torch.Tensor,
    positive: torch.Tensor,
    ignored: torch.Tensor | None = None,
    *,
    trapezoidal: bool = False,
    precision_at: Sequence[int] = PRECISION_AT,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Average precision and precision at k of each query.

    Args:
        similarities: of queries with the images of an index, (B, N); equal ones are ranked by their place there.
        positive: whether an image is what a query looks for, (B, N), bool.
        ignored: whether an image is to be left out of a ranking, (B, N), bool; it must not be positive.
        trapezoidal: the area under the line through the precision before and at each positive, instead of the mean
            precision at each.
        precision_at: each k; where the last positive comes earlier, the precision there counts, as in the original.

    Returns:
        (B,) and (B, number of k), float64, in [0, 1]; NaN for a query without a positive.
    """
    order = similarities.argsort(dim=1, descending=True, stable=True)
    found = positive.gather(1, order)
    counted = torch.ones_like(found) if ignored is None else ~ignored.gather(1, order)
    rank = counted.cumsum(1).double()  # from 1, of those that count
    num_found = found.cumsum(1).double()
    precision = num_found / rank
    if trapezoidal:
        before = torch.where(rank == 1, 1.0, (num_found - 1) / (rank - 1))
        precision = (precision + before) / 2
    average = torch.where(found, precision, 0.0).sum(1) / found.sum(1)
    last = (rank * found).amax(1)
    at = [last.clamp(max=k) for k in precision_at]
    return average, torch.stack([(found & (rank <= k[:, None])).sum(1) / k for k in at], dim=1)


__all__ = ["PRECISION_AT", "average_precision"]
