# SPDX-License-Identifier: Apache-2.0
"""A map of images: places in the plane where those of like features lie together, and which are shown from afar.

Paper: t-SNE, https://www.jmlr.org/papers/v9/vandermaaten08a.html, in the form of https://doi.org/10.1038/s41592-018-0308-4,
whose time is linear in the number of images. The neighbours it looks at are exact, and those that the report lists.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..runtime.extras import require


if TYPE_CHECKING:
    import numpy as np

PERPLEXITY = 30
NEIGHBOURS = 3 * PERPLEXITY  # as many as t-SNE looks at
MIN_IMAGES = 10  # of fewer a map by t-SNE says nothing; they are laid out by principal components
FEW_IMAGES = 4000  # to which Barnes-Hut trees are faster than interpolation on a grid
COARSEST, FINEST = 2**-3, 2**-16  # distances between images that are shown together, in widths of the map


def place_images(features: torch.Tensor, similarities: torch.Tensor, neighbours: torch.Tensor) -> "np.ndarray":
    """
    Args:
        features: (N, D), of any norm.
        similarities, neighbours: of [`nearest_others`], (N, k), with k = `NEIGHBOURS` for more images than that.

    Returns:
        places in [0, 1] x [0, 1], float32, (N, 2); the same for the same input.
    """
    np, decomposition = require("numpy", "report"), require("sklearn.decomposition", "report")
    unit = F.normalize(features.float(), dim=1).numpy().astype("float64")
    if len(unit) >= MIN_IMAGES:
        return _fit_square(_tsne(unit, similarities.numpy(), neighbours.numpy()))
    places = np.zeros((len(unit), 2))
    if len(unit) > 1:
        components = min(2, *unit.shape)
        places[:, :components] = decomposition.PCA(components, svd_solver="full").fit_transform(unit)
    return _fit_square(places)


def _tsne(unit: "np.ndarray", similarities: "np.ndarray", neighbours: "np.ndarray") -> "np.ndarray":
    np, open_tsne = require("numpy", "report"), require("openTSNE", "report")
    distances = np.sqrt(np.maximum(2 - 2 * similarities, 0), dtype="float64")  # euclidean ones of unit vectors
    affinities = open_tsne.affinity.PerplexityBasedNN(
        perplexity=min(PERPLEXITY, neighbours.shape[1] / 3),
        knn_index=open_tsne.nearest_neighbors.PrecomputedNeighbors(neighbours, distances),
    )
    start = open_tsne.initialization.pca(unit, random_state=0)
    method = "bh" if len(unit) <= FEW_IMAGES else "fft"
    fit = open_tsne.TSNE(negative_gradient_method=method, random_state=0).fit
    return np.asarray(fit(affinities=affinities, initialization=start))


def _fit_square(places: "np.ndarray") -> "np.ndarray":
    """Moves and scales places so that they fill a square, with their middle in its middle."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = (high - low).max() or 1
    return ((places - (low + high) / 2) / side + 0.5).astype("float32")


def levels_of_detail(places: "np.ndarray") -> "tuple[np.ndarray, list[tuple[float, int]]]":
    """
    An order in which images can be shown as the map is magnified, without any that covers another.

    Args:
        places: (N, 2), in [0, 1].

    Returns:
        the images in order, (N,), those of a level near each other in the plane side by side; and for each level a
        distance, and how many images come first that are that far apart, horizontally or vertically. Each distance is
        1 / sqrt(2) of the one before; at the last, all are shown.
    """
    np = require("numpy", "report")
    points, level_of = places.astype("float64").tolist(), np.zeros(len(places), int)
    # in an order drawn by lot, so that what is shown is as dense here and there as all images are
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
    """Whether no point lies in a square around this one; `cells` of this side hold one point each."""
    column, row = _cell(point, distance)
    around = (cells.get((column + x, row + y)) for x in (-1, 0, 1) for y in (-1, 0, 1))
    return all(
        other is None or max(abs(point[0] - other[0]), abs(point[1] - other[1])) >= distance for other in around
    )


def z_order(places: "np.ndarray") -> "np.ndarray":
    """Where on a Z-order curve places in the unit square lie, (N, 2) -> (N,): mostly near if they are near."""
    np = require("numpy", "report")
    x, y = np.minimum(places * 2**16, 2**16 - 1).astype("int64").T
    bits = range(16)
    return sum(((x >> bit & 1) << 2 * bit) | ((y >> bit & 1) << 2 * bit + 1) for bit in bits)


__all__ = ["NEIGHBOURS", "levels_of_detail", "place_images", "z_order"]
