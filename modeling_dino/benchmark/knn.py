# SPDX-License-Identifier: Apache-2.0
"""
Measures k-NN classification for several k: `knn_predict` beside full sorting and scikit-learn.

Full sorting is k-NN as it is usually written: all similarities, `argsort`, the first k, their votes; once for each k.
scikit-learn takes part with one search, whose neighbours vote for each k.
"""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn.functional import normalize

from ..evaluation.knn import DEFAULT_K, TEMPERATURE, knn_predict
from .options import BenchOptions
from .timing import Contest, measure


NUM_TRAIN, NUM_TEST, WIDTH, NUM_CLASSES = 20_000, 1_000, 384, 100  # width of a ViT-small


def make_features(num_images: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes features of classes that overlap, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    centers = torch.randn(NUM_CLASSES, width, generator=generator)
    return centers[labels] + 4 * torch.randn(num_images, width, generator=generator), labels


def accuracies(predicted: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Returns the accuracy for each k."""
    return torch.stack([(classes == labels).float().mean() for classes in predicted])


def full_sorting(
    train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor
) -> torch.Tensor:
    """Returns the accuracy for each k."""
    predicted = []
    for k in DEFAULT_K:
        similarities = normalize(test, dim=1) @ normalize(train, dim=1).T
        order = similarities.argsort(dim=1, descending=True)[:, :k]
        votes = similarities.new_zeros(len(test), NUM_CLASSES)
        votes.scatter_add_(1, train_labels[order], (similarities.gather(1, order) / TEMPERATURE).exp())
        predicted.append(votes.argmax(1))
    return accuracies(predicted, test_labels)


def scikit_learn_rivals(
    train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor, threads: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """Returns functions that compute the accuracy for each k, where scikit-learn is installed."""
    if find_spec("sklearn") is None:
        return {}
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    keys, classes, queries = train.numpy(), train_labels.numpy(), test.numpy()

    def one_search() -> torch.Tensor:
        with threadpool_limits(threads):
            search = NearestNeighbors(n_neighbors=max(DEFAULT_K), algorithm="brute", metric="cosine").fit(keys)
            distances, neighbours = search.kneighbors(queries)
        predicted, rows = [], np.arange(len(queries))[:, None]
        for k in DEFAULT_K:
            votes = np.zeros((len(queries), NUM_CLASSES))
            np.add.at(votes, (rows, classes[neighbours[:, :k]]), np.exp((1 - distances[:, :k]) / TEMPERATURE))
            predicted.append(torch.from_numpy(votes.argmax(1)))
        return accuracies(predicted, test_labels)

    return {"scikit-learn, one search": one_search}


def measure_knn(options: BenchOptions) -> dict:
    """Measures k-NN for the usual four k; accuracies are compared, in which a few images may differ."""
    features, labels = make_features(NUM_TRAIN + NUM_TEST, WIDTH)
    features, labels = features.to(options.device), labels.to(options.device)
    arguments = features[NUM_TEST:], labels[NUM_TEST:], features[:NUM_TEST], labels[:NUM_TEST]

    def ours() -> torch.Tensor:
        predicted = knn_predict(*arguments[:3])
        return accuracies([predicted[k][:, 0] for k in DEFAULT_K], arguments[3])

    functions = {"dino": ours, "full sorting for each k": lambda: full_sorting(*arguments)}
    if options.device == "cpu":
        functions |= scikit_learn_rivals(*arguments, options.threads)
    facts = {"train": NUM_TRAIN, "test": NUM_TEST, "width": WIDTH, "k": DEFAULT_K}
    return measure(Contest("knn", "", functions, ["dino"], 4 / NUM_TEST, NUM_TEST, facts=facts), options)
