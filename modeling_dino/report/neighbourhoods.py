# SPDX-License-Identifier: Apache-2.0
"""What nearest neighbours say about a set of features: what is alike, what stands alone, which labels do not fit.

Similarities are cosines, of all pairs of images, exact. Neighbours vote for classes as in [`knn_predict`], but an
image not for itself.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..evaluation.knn import QUERIES, TEMPERATURE, nearest, vote
from ..runtime.extras import require


if TYPE_CHECKING:
    import numpy as np


@torch.inference_mode()
def nearest_others(features: torch.Tensor, k: int, progress: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The images most like each image, without itself.

    Args:
        features: (N, D), of any norm.
        k: how many; N - 1 if that is less.
        progress: show a progress bar.

    Returns:
        cosines, the greatest first, and which images they are with: (N, k) each.
    """
    keys = F.normalize(features.float(), dim=1)
    k = min(k, len(keys) - 1)
    rows = torch.arange(len(keys), device=keys.device)
    similarities, neighbours = keys.new_empty(len(keys), k), rows.new_empty(len(keys), k)
    for chunk in tqdm(rows.split(QUERIES), "neighbours", disable=not progress):
        cosines, found = nearest(keys[chunk], keys, k + 1)
        is_other = found != chunk[:, None]
        is_other[is_other.all(dim=1), -1] = False  # more than k images are its equals, and it is not among those found
        similarities[chunk] = cosines[is_other].reshape(len(chunk), k).clamp(-1, 1)
        neighbours[chunk] = found[is_other].reshape(len(chunk), k)
    return similarities, neighbours


def leave_one_out(features: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """
    The class of each image by the weighted votes of the k images most like it.

    Args:
        features: (N, D), of any norm.
        labels: (N,), in [0, classes).

    Returns:
        (N,); -1 where there is no other image.
    """
    similarities, neighbours = nearest_others(features, k)
    if not neighbours.shape[1]:
        return torch.full_like(labels, -1)
    k = neighbours.shape[1]
    return torch.cat(
        [
            vote(similarities[rows], labels[neighbours[rows]], int(labels.max()) + 1, [k], TEMPERATURE)[k][:, 0]
            for rows in torch.arange(len(labels)).split(QUERIES)
        ]
    )


def near_duplicates(similarities: torch.Tensor, neighbours: torch.Tensor, threshold: float) -> list["np.ndarray"]:
    """
    Groups of images that are linked by cosines of at least the threshold, of [`nearest_others`].

    Returns:
        the images of each group, ascending; the group with the most alike images first.
    """
    np, sparse = require("numpy", "report"), require("scipy.sparse", "report")
    images, places = (similarities >= threshold).nonzero(as_tuple=True)
    ends = (images.numpy(), neighbours[images, places].numpy())
    links = sparse.coo_array((np.ones(len(images), bool), ends), shape=(len(neighbours),) * 2)
    _, groups = sparse.csgraph.connected_components(links, directed=False)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
    return sorted((part for part in parts if len(part) > 1), key=lambda part: -float(similarities[part, 0].max()))


def distances(similarities: torch.Tensor) -> torch.Tensor:
    """How far an image is from others: 1 less the mean cosine with its neighbours, (N, k) -> (N,)."""
    return 1 - similarities.mean(dim=1) if similarities.shape[1] else similarities.new_zeros(len(similarities))


def clusters(features: torch.Tensor, num_clusters: int) -> "np.ndarray":
    """The cluster of each image by k-means of unit vectors, (N, D) -> (N,); that of the most images is 0."""
    np, cluster = require("numpy", "report"), require("sklearn.cluster", "report")
    unit = F.normalize(features.float(), dim=1).numpy()
    num_clusters = min(num_clusters, len(unit))
    found = cluster.MiniBatchKMeans(num_clusters, random_state=0, n_init=3).fit_predict(unit)
    by_size = np.argsort(-np.bincount(found, minlength=num_clusters), kind="stable")
    return np.argsort(by_size)[found]


__all__ = ["clusters", "distances", "leave_one_out", "near_duplicates", "nearest_others"]
