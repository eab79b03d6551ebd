# SPDX-License-Identifier: Apache-2.0
"""Weighted k-nearest-neighbour classification of features.

Paper: https://arxiv.org/abs/2104.14294, section 4.1; the weights are those of Wu et al.,
https://arxiv.org/abs/1805.01978, section 3.4. Source:
https://github.com/facebookresearch/dino/blob/7c446df/eval_knn.py#L148.

Where we deviate: several k are computed in one pass, for any number of images, in chunks of bounded memory; a class
without votes is never predicted before one with votes, and of classes with equal votes the lesser label comes first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..runtime.finite import check_finite


DEFAULT_K = (10, 20, 100, 200)
TEMPERATURE = 0.07
MIN_TEMPERATURE = torch.finfo(torch.float32).tiny  # below, a cosine divided by it is not a number
TOP = 5  # number of classes that are predicted
GROUP = 8  # number of keys that are compared at once
QUERIES, KEYS = 256, 65536  # in one chunk: 64 MiB of similarities; many keys, since merging chunks of keys costs


@torch.inference_mode()
def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    k: Sequence[int] = DEFAULT_K,
    temperature: float = TEMPERATURE,
) -> dict[int, torch.Tensor]:
    """
    Predicts the classes of images by the votes of the nearest training images, which weigh exp(cosine / temperature).

    Args:
        train_features: (N, D), of any norm; all on one device.
        train_labels: (N,), integers.
        test_features: (M, D).
        k: numbers of neighbours that vote, each at most N.
        temperature: the lower it is, the more the nearest neighbours count.

    Returns:
        for each k the labels with the most votes, (M, c), in falling order of votes; c is 5, or the number of classes
        if that is less.

    Raises:
        ValueError: if shapes do not fit, a k or the temperature is out of range, or a feature is not finite.
    """
    ks = sorted(set(k))
    _check(train_features, train_labels, test_features)
    if not ks or ks[0] < 1 or ks[-1] > len(train_features):
        raise ValueError(f"k={ks}: each must be between 1 and the {len(train_features)} training images")
    if not temperature >= MIN_TEMPERATURE:
        raise ValueError(f"temperature={temperature} must be greater than 0")
    keys, queries = (F.normalize(features.float(), dim=1) for features in (train_features, test_features))
    classes, labels = train_labels.unique(return_inverse=True)  # labels count from 0 and leave none out
    predictions: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for chunk in queries.split(QUERIES):
        similarities, neighbours = nearest(chunk, keys, ks[-1])
        for k, most in vote(similarities, labels[neighbours], len(classes), ks, temperature).items():
            predictions[k].append(classes[most])
    return {k: torch.cat(parts) for k, parts in predictions.items()}


def vote(
    similarities: torch.Tensor, labels: torch.Tensor, num_classes: int, ks: Sequence[int], temperature: float
) -> dict[int, torch.Tensor]:
    """
    Counts the weighted votes of neighbours.

    Args:
        similarities: cosines with the neighbours, (B, K), the greatest first.
        labels: labels of the neighbours, (B, K), each in [0, num_classes).
        ks: numbers of neighbours that vote, ascending, each at most K.

    Returns:
        for each k the classes with the most votes, (B, c), in falling order of votes.
    """
    weights = ((similarities - similarities[:, :1]) / temperature).exp()  # the first is the greatest
    votes, start, most = weights.new_zeros(len(weights), num_classes), 0, {}
    for k in ks:
        votes.scatter_add_(1, labels[:, start:k], weights[:, start:k])
        most[k] = votes.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
        start = k
    return most


def nearest(queries: torch.Tensor, keys: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the keys, (N, D), with the greatest inner products with each query, (B, D).

    Returns:
        the products, the greatest first, and the places of the keys: (B, k) each.
    """
    products, indices = queries.new_empty(len(queries), 0), torch.empty(0)
    for start in range(0, len(keys), KEYS):
        chunk = queries @ keys[start : start + KEYS].T
        found, places = greatest(chunk, min(k, chunk.shape[1]))
        if start:
            found = torch.cat([products, found], dim=1)
            places = torch.cat([indices, places + start], dim=1)
            found, order = found.topk(min(k, found.shape[1]), dim=1)
            places = places.gather(1, order)
        products, indices = found, places
    return products, indices


def greatest(products: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Does what `topk` does along the rows, (B, N) -> (B, k) twice, but faster.

    Columns are put into groups of `GROUP`. None of the k greatest products can lie in a group whose maximum is not
    among the k greatest maxima, so that only the columns of these k groups are compared one by one.
    """
    num_groups = products.shape[1] // GROUP
    if num_groups < 2 * k:
        return products.topk(k, dim=1)
    in_groups = num_groups * GROUP
    maxima = products[:, :in_groups].unflatten(1, (GROUP, num_groups)).amax(1)
    groups = maxima.topk(k, dim=1, sorted=False).indices
    starts = torch.arange(0, in_groups, num_groups, device=products.device)
    columns = (groups.unsqueeze(1) + starts.unsqueeze(1)).flatten(1)  # (B, GROUP * k)
    rest = torch.arange(in_groups, products.shape[1], device=products.device).expand(len(products), -1)
    columns = torch.cat([columns, rest], dim=1)
    found, order = products.gather(1, columns).topk(k, dim=1)
    return found, columns.gather(1, order)


def knn_accuracy(predictions: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[float, float]:
    """
    Returns top-1 and top-5 accuracy in percent.

    Args:
        predictions: classes in falling order, (M, c), as [`knn_predict`] gives them.
        labels: true classes, (M,).
        k: number of neighbours that voted; where it is less than 5, no more than k classes count for top-5.
    """
    correct = predictions == labels.unsqueeze(1)
    top1, top5 = (correct[:, :top].any(dim=1).sum().item() * 100 / len(labels) for top in (1, min(TOP, k)))
    return top1, top5


def _check(train_features: torch.Tensor, train_labels: torch.Tensor, test_features: torch.Tensor):
    """Raises ValueError if shapes do not fit, or a feature is not finite."""
    if train_features.ndim != 2 or test_features.ndim != 2 or train_features.shape[1] != test_features.shape[1]:
        shapes = f"{tuple(train_features.shape)} and {tuple(test_features.shape)}"
        raise ValueError(f"features of shapes {shapes}: both must be (images, width), of the same width")
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(f"{tuple(train_labels.shape)} labels for {len(train_features)} training images")
    for name, features in (("training", train_features), ("test", test_features)):
        check_finite(features, f"the feature of {name} image", range(len(features)))
