# SPDX-License-Identifier: Apache-2.0
"""Searches an index for the images most like a query, and measures how good the rankings are.

Source: https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py (cosine similarity of features)
and its eval_copy_detection.py (features that were whitened before).

Where we deviate: similarities are computed in chunks of bounded memory.

Average precision is high where the images that are looked for come first. The trapezoidal kind and the precision at k
are those of the original (`compute_ap`, `compute_map` of its utils.py), which has them from
https://github.com/filipradenovic/revisitop; paper: https://arxiv.org/abs/1803.11285. The plain kind is the mean of the
precision at each positive, as in scikit-learn. Where we deviate: all images are ranked, where the original's copy
detection looks at the first 20; of equally similar images the negative ones come first, so that a model that tells no
images apart gains nothing.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F

from ..runtime.extras import require
from .ground_truth import FoundGroundTruth
from .knn import QUERIES, nearest


PRECISION_AT = (1, 5, 10)  # https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py
SEARCH = ("auto", "faiss", "exact")
SIMILARITIES = 2**24  # number of similarities in one chunk: 64 MiB
MARGIN = 16  # more candidates than are asked for: the query itself, and those that are equal but for rounding
UNLABELLED = -1

Masks = Callable[[range], tuple[torch.Tensor, torch.Tensor]]


class NothingToEvaluate(ValueError):
    """Is raised where neither labels nor a ground truth say which images are to be found."""


def search_index(
    queries: torch.Tensor, index: torch.Tensor, top: int, own: torch.Tensor | None = None, search: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the images of an index that are most like each query.

    Args:
        queries, index: features, (Q, D) and (N, D), of any norm.
        top: number of images to find for each query.
        own: the place of each query in the index, where it is not found, (Q,); -1 for queries that are not in it.
        search: `"faiss"`, `"exact"` (without faiss), or `"auto"`: faiss where it is installed, and the features are on
            a CPU, where faiss searches. They give the same.

    Returns:
        cosine similarities, the greatest first, and places in the index: (Q, top) each.

    Raises:
        ValueError: if there are fewer images than `top`, or the search is an unknown one.
        ImportError: if faiss is asked for, but not installed.
    """
    if search not in SEARCH:
        raise ValueError(f"unknown search {search!r}: allowed are {', '.join(SEARCH)}")
    has_own = own is not None and bool((own >= 0).any())
    num_images = len(index) - has_own
    if not num_images:
        raise ValueError("there is nothing to find: the only image of the index is the query itself; add others to it")
    if not 1 <= top <= num_images:
        raise ValueError(f"top={top} must be between 1 and the {num_images} images there are to find")
    queries, index = F.normalize(queries.float()), F.normalize(index.float())
    faiss_gains = index.device.type == "cpu" and find_spec("faiss") is not None
    use_faiss = search == "faiss" or (search == "auto" and faiss_gains)
    find = _faiss_finder(index) if use_faiss else partial(nearest, keys=index)
    own = torch.full((len(queries),), -1) if own is None else own
    found = [
        _in_order(chunk, index, find(chunk, k=min(top + MARGIN, len(index)))[1], chunk_own, top)
        for chunk, chunk_own in zip(queries.split(QUERIES), own.to(queries.device).split(QUERIES))
    ]
    return torch.cat([similarities for similarities, _ in found]), torch.cat([places for _, places in found])


def _faiss_finder(index: torch.Tensor) -> Callable:
    """Returns a function that does for an index what [`nearest`] does, by faiss."""
    flat = require("faiss").IndexFlatIP(index.shape[1])
    flat.add(index.numpy(force=True))  # on the CPU, wherever it was

    def find(queries: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(found).to(queries.device) for found in flat.search(queries.numpy(force=True), k))

    return find


def _in_order(
    queries: torch.Tensor, index: torch.Tensor, candidates: torch.Tensor, own: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Sorts the candidates, (B, top + MARGIN), by similarities in float64 and then by places, and returns the first ones.

    In float32 faiss and PyTorch give different last digits. A query's own place comes last.
    """
    candidates = candidates.sort(dim=1).values
    similarities = torch.stack([(index[c].double() * q.double()).sum(1) for q, c in zip(queries, candidates)])
    similarities[candidates == own.unsqueeze(1)] = -math.inf
    similarities, order = similarities.sort(dim=1, descending=True, stable=True)
    return similarities[:, :top].float(), candidates.gather(1, order)[:, :top]


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


def evaluate_ranking(
    queries: torch.Tensor,
    index: torch.Tensor,
    masks: Masks,
    own: torch.Tensor | None = None,
    *,
    trapezoidal: bool = False,
) -> dict[str, float]:
    """
    Evaluates the rankings of an index by cosine similarity.

    Args:
        queries, index: features, (Q, D) and (N, D), of any norm.
        masks: returns for some of the queries which images are positive and which ignored, (B, N) each.
        own: see [`search_index`]; a query itself is neither positive nor negative.
        trapezoidal: see [`average_precision`].

    Returns:
        `mAP`, `mP@1`, … in percent, means over the queries that have a positive image, and the number of `queries`.

    Raises:
        NothingToEvaluate: if no query has a positive image.
    """
    queries, index = F.normalize(queries.float()), F.normalize(index.float())
    rows, found = max(1, SIMILARITIES // len(index)), []
    for start in range(0, len(queries), rows):
        chunk = range(start, min(start + rows, len(queries)))
        positive, ignored = (mask.cpu() for mask in masks(chunk))
        if own is not None:
            is_own = own[start : chunk.stop].cpu().unsqueeze(1) == torch.arange(len(index))
            positive, ignored = positive & ~is_own, ignored | is_own
        similarities = (queries[start : chunk.stop] @ index.T).cpu()
        for row in positive.any(1).nonzero().flatten().tolist():
            average, precision = average_precision(
                similarities[row].numpy(), positive[row].numpy(), ignored[row].numpy(), trapezoidal=trapezoidal
            )
            found.append([average, *precision])
    if not found:
        raise NothingToEvaluate("no query has an image to find")
    names = ("mAP", *(f"mP@{k}" for k in PRECISION_AT))
    means = torch.tensor(found, dtype=torch.float64).mean(0) * 100
    return {**dict(zip(names, means.tolist())), "queries": len(found)}


def evaluate_labels(
    queries: torch.Tensor,
    query_labels: torch.Tensor,
    index: torch.Tensor,
    index_labels: torch.Tensor,
    own: torch.Tensor | None = None,
) -> dict[str, float]:
    """
    Evaluates how well queries find images with their label, by the plain average precision: see [`evaluate_ranking`].

    Args:
        query_labels, index_labels: integers, (Q,) and (N,); images with -1 have no label, and are ignored.
    """

    def masks(chunk: range) -> tuple[torch.Tensor, torch.Tensor]:
        ignored = (index_labels == UNLABELLED).repeat(len(chunk), 1)
        return (query_labels[chunk.start : chunk.stop].unsqueeze(1) == index_labels) & ~ignored, ignored

    return evaluate_ranking(queries, index, masks, own)


def evaluate_each(features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Evaluates how well each image, (N, D), finds those with its label, (N,), among all others."""
    return evaluate_labels(features, labels, features, labels, torch.arange(len(labels)))


def evaluate_ground_truth(
    queries: torch.Tensor, index: torch.Tensor, truth: FoundGroundTruth, own: torch.Tensor | None = None
) -> dict[str, dict[str, float]]:
    """
    Evaluates by the original's protocol, with the trapezoidal average precision.

    Args:
        queries: features, (Q, D), of the queries of the ground truth, and perhaps of others.
        own: see [`search_index`].

    Returns:
        for each setup of the ground truth what [`evaluate_ranking`] returns.
    """
    places = torch.tensor(truth.places)
    queries, own = queries[places], None if own is None else own[places]
    return {
        setup: evaluate_ranking(queries, index, partial(truth.masks, setup), own, trapezoidal=True)
        for setup in truth.setups
    }
