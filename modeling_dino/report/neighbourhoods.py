# SPDX-License-Identifier: Apache-2.0
"""
Finds the nearest neighbours of images, and from these near-duplicates, outliers, clusters and predicted classes.

Similarities are cosines, computed exactly for all pairs of images. Neighbours vote for classes as in [`knn_predict`],
and an image does not vote for itself.
"""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..evaluation.knn import QUERIES, TEMPERATURE, nearest, vote
from ..runtime.extras import require


# Between images that show different things, distances are a greater share of that to the tenth neighbour, and between
# copies that were compressed or resized, a smaller one: measured on photographs, for features of trained and of random
# weights.
NEIGHBOURHOOD, SHARE_OF_TENTH = 10, 0.2
EQUAL = 1e-3  # distance of equal features whose cosine is computed in float32


@torch.inference_mode()
def nearest_others(features: torch.Tensor, k: int, progress: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the k nearest neighbours of each image among the others; N - 1 if there are no more.

    Args:
        features: (N, D), of any norm.

    Returns:
        the cosine similarities in descending order, and the neighbours: (N, k) each.
    """
    keys = F.normalize(features.float(), dim=1)
    k = min(k, len(keys) - 1)
    rows = torch.arange(len(keys), device=keys.device)
    similarities, neighbours = keys.new_empty(len(keys), k), rows.new_empty(len(keys), k)
    for chunk in tqdm(rows.split(QUERIES), "neighbours", disable=not progress):
        cosines, found = nearest(keys[chunk], keys, k + 1)
        is_other = found != chunk[:, None]
        is_other[is_other.all(dim=1), -1] = False  # more than k others equal it, and it was not found itself
        similarities[chunk] = cosines[is_other].reshape(len(chunk), k).clamp(-1, 1)
        neighbours[chunk] = found[is_other].reshape(len(chunk), k)
    return similarities, neighbours


def leave_one_out(features: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """
    Predicts the class of each image by the weighted votes of its k nearest neighbours.

    Args:
        features: (N, D), of any norm.
        labels: (N,), in [0, classes).

    Returns:
        (N,); -1 where there is no other image.
    """
    similarities, neighbours = nearest_others(features, k)
    predicted, k = torch.full_like(labels, -1), neighbours.shape[1]
    for rows in torch.arange(len(labels)).split(QUERIES) if k else ():
        votes = vote(similarities[rows], labels[neighbours[rows]], int(labels.max()) + 1, [k], TEMPERATURE)
        predicted[rows] = votes[k][:, 0]
    return predicted


def near_duplicates(
    similarities: torch.Tensor, neighbours: torch.Tensor, threshold: float | None = None
) -> list[np.ndarray]:
    """
    Finds groups of images, in which each is linked to another.

    Args:
        similarities, neighbours: (N, k), of [`nearest_others`].
        threshold: least cosine similarity of images that are linked; by default the limits of
            [`duplicate_distances`], the lesser one of the two images.

    Returns:
        the images of each group, in ascending order; the groups in descending order of their greatest similarity.
    """
    sparse = require("scipy.sparse", "report")
    if threshold is None:
        limits = duplicate_distances(similarities)
        is_linked = distances_of(similarities) <= torch.minimum(limits[:, None], limits[neighbours])
    else:
        is_linked = similarities >= threshold
    images, places = is_linked.nonzero(as_tuple=True)
    ends = (images.numpy(), neighbours[images, places].numpy())
    links = sparse.coo_array((np.ones(len(images), bool), ends), shape=(len(neighbours),) * 2)
    _, groups = sparse.csgraph.connected_components(links, directed=False)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
    return sorted((part for part in parts if len(part) > 1), key=lambda part: -float(similarities[part, 0].max()))


def duplicate_distances(similarities: torch.Tensor) -> torch.Tensor:
    """
    Computes the greatest distance of each image to a near-duplicate: a share of the distance to its tenth neighbour,
    so that the limit fits the features, whose cosines may all be near 1; and at least what rounding makes of 0.

    Args:
        similarities: (N, k), in descending order.

    Returns:
        (N,), between unit vectors.
    """
    if not similarities.shape[1]:
        return similarities.new_zeros(len(similarities))
    tenth = distances_of(similarities[:, min(NEIGHBOURHOOD, similarities.shape[1]) - 1])
    return (SHARE_OF_TENTH * tenth).clamp_min(EQUAL)


def distances_of(similarities: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean distances between unit vectors of these cosine similarities."""
    return (2 - 2 * similarities).clamp_min(0).sqrt()


def duplicates_rule(similarities: torch.Tensor, threshold: float | None) -> str:
    """Returns a sentence about the images that are linked."""
    if threshold is not None:
        return f"Each image has a cosine similarity of at least {threshold} to another one of its group, as was asked."
    limits = duplicate_distances(similarities)
    cosine = 1 - float(limits.median()) ** 2 / 2 if len(limits) else 1.0
    return (
        "The limit follows the features: two images are linked if the distance between them is at most "
        f"{SHARE_OF_TENTH} times that of each to its {NEIGHBOURHOOD}th nearest neighbour. For the median image, that "
        f"is a cosine similarity of at least {cosine:.4f}. The option --duplicates sets a cosine similarity instead."
    )


def neighbour_distances(similarities: torch.Tensor) -> torch.Tensor:
    """Returns 1 minus the mean cosine similarity of an image to its neighbours, (N, k) -> (N,)."""
    return 1 - similarities.mean(dim=1) if similarities.shape[1] else similarities.new_zeros(len(similarities))


def cluster_images(features: torch.Tensor, num_clusters: int) -> np.ndarray:
    """Clusters images by k-means of their unit vectors, (N, D) -> (N,); 0 is the cluster with the most images."""
    cluster = require("sklearn.cluster", "report")
    unit = F.normalize(features.float(), dim=1).numpy()
    num_clusters = min(num_clusters, len(unit))
    found = cluster.MiniBatchKMeans(num_clusters, random_state=0, n_init=3).fit_predict(unit)
    by_size = np.argsort(-np.bincount(found, minlength=num_clusters), kind="stable")
    return np.argsort(by_size)[found]
