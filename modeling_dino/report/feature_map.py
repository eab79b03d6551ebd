# SPDX-License-Identifier: Apache-2.0
"""
Computes a map of images, on which similar images lie together, and which of them are shown from afar.

Papers: t-SNE (https://www.jmlr.org/papers/v9/vandermaaten08a.html), in a form whose time is linear in the number of
images (https://doi.org/10.1038/s41592-018-0308-4). The nearest neighbours are exact, and the same as in the report.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..runtime.extras import require


PERPLEXITY = 30
NEIGHBOURS = 3 * PERPLEXITY  # as many as t-SNE uses
MIN_IMAGES = 10  # fewer are placed by their principal components, as t-SNE needs neighbours
FEW_IMAGES = 4000  # up to so many, Barnes-Hut trees are faster than interpolation on a grid
COARSEST, FINEST = 2**-3, 2**-16  # distances between images that are shown together, in widths of the map


def place_images(features: torch.Tensor, similarities: torch.Tensor, neighbours: torch.Tensor) -> np.ndarray:
    """
    Computes the places of images on the map; the same for the same input.

    Args:
        features: (N, D), of any norm.
        similarities, neighbours: (N, k), of [`nearest_others`] with `NEIGHBOURS` of each image.

    Returns:
        (N, 2), float32, in [0, 1].
    """
    decomposition = require("sklearn.decomposition", "report")
    unit = F.normalize(features.float(), dim=1).numpy().astype("float64")
    if len(unit) >= MIN_IMAGES:
        return fill_square(_tsne(unit, similarities.numpy(), neighbours.numpy()))
    places = np.zeros((len(unit), 2))
    if len(unit) > 1:
        components = min(2, *unit.shape)
        places[:, :components] = decomposition.PCA(components, svd_solver="full").fit_transform(unit)
    return fill_square(places)


def _tsne(unit: np.ndarray, similarities: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    open_tsne = require("openTSNE", "report")
    distances = np.sqrt(np.maximum(2 - 2 * similarities, 0), dtype="float64")  # between unit vectors, euclidean
    affinities = open_tsne.affinity.PerplexityBasedNN(
        perplexity=min(PERPLEXITY, neighbours.shape[1] / 3),
        knn_index=open_tsne.nearest_neighbors.PrecomputedNeighbors(neighbours, distances),
    )
    start = open_tsne.initialization.pca(unit, random_state=0)
    method = "bh" if len(unit) <= FEW_IMAGES else "fft"
    fit = open_tsne.TSNE(negative_gradient_method=method, random_state=0).fit
    return np.asarray(fit(affinities=affinities, initialization=start))


def fill_square(places: np.ndarray) -> np.ndarray:
    """
    Moves places so that they fill the unit square: (N, 2) -> (N, 2), float32.

    They are turned so that they extend most from left to right. Then each coordinate becomes the mean of itself, from
    0 to 1, and of its rank, from 0 to 1, which narrows the gaps between groups and keeps the order of the images.
    """
    centred = places - places.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2] if len(places) > 1 else np.eye(2)
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    axes *= np.sign(largest)[:, None]  # the same sign on all machines
    return np.stack([_spread(values) for values in (centred @ axes.T).T], axis=1).astype("float32")


def _spread(values: np.ndarray) -> np.ndarray:
    """Returns the mean of values and their ranks, both from 0 to 1; equal values stay equal."""
    width = np.ptp(values)
    if not width:
        return np.full(len(values), 0.5)
    ascending = np.sort(values)
    ranks = np.searchsorted(ascending, values, "left") + np.searchsorted(ascending, values, "right")
    ranks = (ranks - ranks.min()) / np.ptp(ranks)
    return ((values - values.min()) / width + ranks) / 2


def levels_of_detail(places: np.ndarray) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """
    Orders images so that the first ones can be shown from afar, and more as the map is magnified, without overlap.

    Args:
        places: (N, 2), in [0, 1].

    Returns:
        the images in order, (N,), within a level along a Z-order curve; and the levels, each a distance and the number
        of images that lie at least so far apart, horizontally or vertically, and come first in the order. Each
        distance is 1 / sqrt(2) of the one before. The last level has all images.
    """
    points, level_of = places.astype("float64").tolist(), np.zeros(len(places), int)
    # in random order, so that the images of a level are as dense in each place as all images are
    shown, left = [], np.random.default_rng(0).permutation(len(places)).tolist()
    levels, distance = [], COARSEST
    while left:
        cells, covered = {_cell(points[image], distance): points[image] for image in shown}, []
        for image in left:
            if distance > FINEST and not _is_free(points[image], cells, distance):
                covered.append(image)
                continue
            cells[_cell(points[image], distance)] = points[image]
            shown.append(image)
            level_of[image] = len(levels)
        levels.append((distance, len(shown)))
        left, distance = covered, distance / np.sqrt(2)
    return np.lexsort((z_order(places), level_of)), levels


def _cell(point: list[float], side: float) -> tuple[int, int]:
    return int(point[0] / side), int(point[1] / side)


def _is_free(point: list[float], cells: dict[tuple[int, int], list[float]], distance: float) -> bool:
    """Returns whether no other point is within the distance; `cells` have this side, and hold one point each."""
    column, row = _cell(point, distance)
    around = (cells.get((column + x, row + y)) for x in (-1, 0, 1) for y in (-1, 0, 1))
    return all(
        other is None or max(abs(point[0] - other[0]), abs(point[1] - other[1])) >= distance for other in around
    )


def z_order(places: np.ndarray) -> np.ndarray:
    """Computes where places of the unit square lie on a Z-order curve, (N, 2) -> (N,)."""
    x, y = np.minimum(places * 2**16, 2**16 - 1).astype("int64").T
    bits = range(16)
    return sum(((x >> bit & 1) << 2 * bit) | ((y >> bit & 1) << 2 * bit + 1) for bit in bits)
