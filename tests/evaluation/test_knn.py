"""k-NN against the original's numbers, scikit-learn's, and a case worked by hand."""

import math

import numpy as np
import pytest
import torch
from golden_data import read_golden
from sklearn.neighbors import KNeighborsClassifier

from modeling_dino.evaluation import knn
from modeling_dino.evaluation.knn import knn_accuracy, knn_predict, nearest


def clusters(num_images: int, num_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    centers = torch.randn(num_classes, 16, generator=torch.Generator().manual_seed(99))
    return centers[labels] + 2 * torch.randn(num_images, 16, generator=generator), labels


def test_the_originals_numbers():
    metadata, tensors = read_golden("knn")
    rows = tensors["k_top1_top5"]
    ks = [int(k) for k in rows[:, 0]]
    predictions = knn_predict(
        tensors["train_features"],
        tensors["train_labels"],
        tensors["test_features"],
        ks,
        metadata["knn"]["temperature"],
    )
    found = [(k, *knn_accuracy(predictions[k], tensors["test_labels"], k)) for k in ks]
    np.testing.assert_array_equal(found, rows)


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "keys"), [(256, 65536), (7, 50), (1, 13)])
def test_scikit_learn_in_chunks_of_any_size(queries, keys, monkeypatch):
    monkeypatch.setattr(knn, "QUERIES", queries)
    monkeypatch.setattr(knn, "KEYS", keys)
    (train, train_labels), (test, _) = clusters(300, 6, 1), clusters(100, 6, 2)
    train, test = (torch.nn.functional.normalize(x) for x in (train, test))
    predictions = knn_predict(train, train_labels, test, [1, 10, 60, 300])

    def weights(distances):  # euclidean, of unit vectors
        return np.exp((1 - distances**2 / 2) / 0.07)

    for k, predicted in predictions.items():
        theirs = KNeighborsClassifier(k, weights=weights, algorithm="brute").fit(train.double(), train_labels)
        probabilities = theirs.predict_proba(test.double())
        assert (predicted[:, 0].numpy() == theirs.predict(test.double())).all()
        if k >= 60:  # all classes have votes
            np.testing.assert_array_equal(predicted, np.argsort(-probabilities, kind="stable")[:, :5])


def test_a_case_worked_by_hand():
    """Cosines 1, 0.8, 0.6 and 0: with T = 0.2, votes e^5 for class 9 against e^4 + e^3 for class 4; then all."""
    train = torch.tensor([[2.0, 0.0], [0.8, 0.6], [3.0, 4.0], [0.0, 1.0]])
    labels = torch.tensor([9, 4, 4, 2])
    test = torch.tensor([[5.0, 0.0]])
    predictions = knn_predict(train, labels, test, [1, 2, 3, 4], temperature=0.2)
    assert {k: p.tolist() for k, p in predictions.items()} == {
        1: [[9, 2, 4]],  # without votes: the lesser label first
        2: [[9, 4, 2]],
        3: [[9, 4, 2]],
        4: [[9, 4, 2]],
    }
    assert math.exp(5) > math.exp(4) + math.exp(3)
    predictions = knn_predict(train, labels, test, [3], temperature=1.0)  # e^1 < e^0.8 + e^0.6
    assert predictions[3].tolist() == [[4, 9, 2]]
    assert knn_accuracy(predictions[3], torch.tensor([9]), 3) == (0.0, 100.0)
    assert knn_accuracy(predictions[3], torch.tensor([9]), 1) == (0.0, 0.0)


def test_norms_do_not_count_nor_low_temperatures_overflow():
    (train, labels), (test, _) = clusters(100, 3, 1), clusters(20, 3, 2)
    expected = knn_predict(train, labels, test, [5])[5]
    scales = torch.rand(100, 1) + 0.1
    assert torch.equal(knn_predict(train * scales, labels, test * 7, [5])[5], expected)
    assert torch.equal(
        knn_predict(train, labels, test, [50], 1e-3)[50][:, 0], knn_predict(train, labels, test, [1])[1][:, 0]
    )


def test_one_class_and_half_precision():
    train, test = torch.randn(10, 4).half(), torch.randn(3, 4).bfloat16()
    predictions = knn_predict(train, torch.full((10,), -3), test, [10])
    assert predictions[10].tolist() == [[-3]] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": [11]}, "between 1 and the 10 training images"),
        ({"k": [0, 3]}, "between 1"),
        ({"k": []}, "between 1"),
        ({"temperature": 0}, "temperature=0 must be greater"),
        ({"test_features": torch.zeros(3, 5)}, "of the same width"),
        ({"train_labels": torch.zeros(9, dtype=torch.long)}, "labels for 10 training images"),
        ({"test_features": torch.tensor([[0.0] * 4, [0, math.nan, 0, 0]])}, "test image 1 is not finite"),
        ({"temperature": 1e-300}, "temperature=1e-300 must be greater than 0"),
    ],
)
def test_what_cannot_work_is_refused(change, says):
    arguments = {
        "train_features": torch.randn(10, 4),
        "train_labels": torch.arange(10),
        "test_features": torch.randn(3, 4),
        "k": [3],
    }
    with pytest.raises(ValueError, match=says):
        knn_predict(**{**arguments, **change})


@pytest.mark.parametrize("num_keys", [1, 7, 64, 999, 1000, 4003])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_nearest_are_those_of_a_full_sort(num_keys, k):
    """Also where keys are compared in groups, which they do not fill, and where some are equal."""
    keys = torch.randn(num_keys, 3).mul(2).round()
    queries = torch.randn(9, 3).mul(2).round()
    products, places = nearest(queries, keys, k)
    everything = (queries.double() @ keys.double().T).sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(products.double(), everything, rtol=0, atol=0)
    torch.testing.assert_close((queries.unsqueeze(1) * keys[places]).sum(2), products, rtol=0, atol=0)
    assert all(len(set(row)) == len(row) for row in places.tolist())
