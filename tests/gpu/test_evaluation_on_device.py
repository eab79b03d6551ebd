import pytest
import torch
from golden_data import assert_close

from modeling_dino.evaluation.knn import knn_predict
from modeling_dino.evaluation.linear import feature_choices, train_heads
from modeling_dino.evaluation.ranking import evaluate_each, search_index


def clusters(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of classes that are far from each other, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 5
    centers = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
    return 3 * centers[labels] + torch.randn(num_images, 32, generator=generator), labels


def test_neighbours_are_those_of_a_cpu(device):
    (train, labels), (test, _) = clusters(300, 0), clusters(100, 1)
    expected = knn_predict(train, labels, test, [1, 20])
    found = knn_predict(train.to(device), labels.to(device), test.to(device), [1, 20])
    for k in (1, 20):
        assert torch.equal(found[k][:, 0].cpu(), expected[k][:, 0])


def test_linear_classifiers_are_those_of_a_cpu(device):
    features, labels = clusters(300, 0)
    choices = feature_choices("cls", 1, features.shape[1])
    expected = train_heads(features, labels, 5, choices, [0.1], epochs=3)
    found = train_heads(features.to(device), labels.to(device), 5, choices, [0.1], epochs=3)
    assert_close(found[0].weight.cpu(), expected[0].weight, 1e-3)


def test_rankings_are_those_of_a_cpu(device):
    features, labels = clusters(100, 0)
    expected, found = evaluate_each(features, labels), evaluate_each(features.to(device), labels.to(device))
    assert found.keys() == expected.keys()
    assert_close(torch.tensor(list(found.values())), torch.tensor(list(expected.values())), 1e-3)


@pytest.mark.parametrize("search", ["auto", "exact", "faiss"])
def test_what_is_found_is_what_a_cpu_finds(device, search):
    if search == "faiss":
        pytest.importorskip("faiss")
    (index, _), (queries, _) = clusters(300, 0), clusters(70, 1)
    own = torch.arange(70)
    similarities, places = search_index(queries.to(device), index.to(device), 5, own.to(device), search)
    expected = search_index(queries, index, 5, own, "exact")
    assert torch.equal(places.cpu(), expected[1])
    assert_close(similarities.cpu(), expected[0], 1e-5)
