# SPDX-License-Identifier: Apache-2.0
"""The Kozachenko-Leonenko estimate of entropy, negated: it spreads the features of a batch over the sphere.

Papers: Spreading vectors for similarity search, https://arxiv.org/abs/1806.03198, section 3.2; DINOv2,
https://arxiv.org/abs/2304.07193, section 4. DINOv3, https://arxiv.org/abs/2508.10104, section 3.2, takes the nearest
neighbours among the features of several processes.
Reference: https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/loss/koleo_loss.py.
"""

import torch
from torch.nn import functional as F

from ..collectives import gather_over_processes, process_number
from .cross_entropy import at_least_float32, without_autocast


EPSILON = 1e-8  # added to each difference and to each distance


def koleo_loss(
    features: torch.Tensor,
    num_neighbours: int = 1,
    over_processes: bool = False,
    whole: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """
    Returns the mean of minus the logarithm of the distance between a feature and its nearest others.

    ```
    x = normalize(features)
    for i in range(B):
        for j in the num_neighbours numbers j != i with the largest x[i] @ x[j]:
            loss += -log(norm(x[i] - x[j] + eps) + eps) / (B * num_neighbours)
    ```

    Call it for the features of each global crop by themselves: two crops of one image are near each other, and should
    be. Neighbours are found among the images of one call, or of all parts of a step, where these are passed.

    Args:
        features: (B, D), the student's before the head, as CLS tokens.
        num_neighbours: 1 in DINOv2.
        over_processes: find the neighbours among the features of all processes, of which each has B. The mean of
            their losses and gradients, as distributed training takes it, is that of one process with all images.
        whole: (N, D), the features of all parts of a step, where they come one after another, as this process computed
            them before without gradient; `features` are the rows from `first` on. The loss is that of all N. The mean
            of the gradients of the parts, as accumulation takes it, is that of all N at once.

    Returns:
        a scalar, at least in float32.

    Raises:
        ValueError: if there are not more images than neighbours.
    """
    with without_autocast(features):
        own = F.normalize(at_least_float32(features), dim=-1, eps=EPSILON)
        if whole is not None:
            rest = F.normalize(at_least_float32(whole.detach()), dim=-1, eps=EPSILON)
            own = torch.cat([rest[:first], own, rest[first + len(features) :]])
        everyone = gather_over_processes(own) if over_processes else own
        if not 1 <= num_neighbours < len(everyone):
            raise ValueError(
                f"KoLeo of {len(everyone)} images has no {num_neighbours} nearest others of an image: raise the batch "
                "size, or leave out KoLeo"
            )
        neighbours = nearest_others(own, everyone, num_neighbours)  # (B, num_neighbours)
        distances = F.pairwise_distance(own.unsqueeze(1), everyone[neighbours], eps=EPSILON)
        loss = -(distances + EPSILON).log().mean()
        # of the value the mean over parts is that of all; of gradients each part has its own alone
        return loss + (len(own) / len(features) - 1) * (loss - loss.detach())


@torch.no_grad()
def nearest_others(own: torch.Tensor, everyone: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the numbers of the rows of `everyone` nearest to each of `own` but itself: (B, D) -> (B, count)."""
    similarities = own @ everyone.T  # (B, all)
    first = process_number() * len(own) if len(everyone) > len(own) else 0
    similarities.diagonal(first).fill_(-torch.inf)
    return similarities.topk(count, dim=1).indices
