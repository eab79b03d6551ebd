import faiss  # noqa: F401 (this is what is tested)
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from modeling_dino.evaluation import ranking
from modeling_dino.evaluation.ground_truth import GroundTruth
from modeling_dino.evaluation.ranking import evaluate_each, evaluate_ground_truth, evaluate_labels, search_index


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of four classes that overlap."""
    labels = torch.arange(120) % 4
    return torch.randn(4, 16)[labels] + 1.5 * torch.randn(120, 16), labels


@pytest.mark.parametrize("search", ["faiss", "exact", "auto"])
def test_neighbours_are_scikit_learns(data, search):
    features, _ = data
    queries = 3 * torch.randn(30, 16)
    similarities, places = search_index(queries, features, 10, search=search)
    theirs = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(features.double())
    distances, expected = theirs.kneighbors(queries.double())
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(similarities, 1 - distances, rtol=0, atol=1e-6)


def test_faiss_gives_the_same_as_without_it():
    """Also where similarities are equal, or nearly: some images are copies, and some differ in the last digits."""
    features = torch.randn(500, 16)
    features[100:110] = features[:10]
    features[200:210] = features[:10] * (1 + 1e-6 * torch.randn(10, 16))
    own = torch.arange(len(features))
    for top in (1, 2, 30, 499):
        by_faiss, exact = (search_index(features, features, top, own, search) for search in ("faiss", "exact"))
        assert torch.equal(by_faiss[1], exact[1])
        assert torch.equal(by_faiss[0], exact[0])
        assert not (exact[1] == own.unsqueeze(1)).any()


@pytest.mark.parametrize("search", ["faiss", "exact"])
def test_an_image_is_not_its_own_neighbour(search):
    """Three copies of one image: each finds the other two, wherever its own place is among equal ones."""
    features = torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 0], [1, 1]])
    _, places = search_index(features[[1, 2, 3, 0]], features, 2, torch.tensor([1, 2, 3, -1]), search)
    assert [sorted(row) for row in places.tolist()] == [[2, 3], [1, 3], [1, 2], [0, 4]]


def test_each_image_against_the_others_as_scikit_learn(data, monkeypatch):
    features, labels = data
    found = evaluate_each(features, labels)
    normalised = torch.nn.functional.normalize(features.double()).numpy()
    expected, first = [], []
    for i in range(len(features)):
        others = np.arange(len(features)) != i
        scores = normalised[others] @ normalised[i]
        expected.append(average_precision_score((labels[others] == labels[i]).numpy(), scores))
        first.append(labels[others][scores.argmax()] == labels[i])
    assert found["mAP"] == pytest.approx(100 * np.mean(expected), rel=1e-9)
    assert found["mP@1"] == pytest.approx(100 * np.mean(first), rel=1e-9)
    assert found["queries"] == 120
    monkeypatch.setattr(ranking, "SIMILARITIES", 7 * 120)  # chunks of seven queries
    assert evaluate_each(features * torch.rand(120, 1), labels) == pytest.approx(found, rel=1e-9)


def test_images_without_a_label_are_left_out(data):
    features, labels = data
    own = torch.arange(len(labels))
    partly = torch.where(own % 3 == 0, -1, labels)
    found = evaluate_labels(features, partly, features, partly, own)
    assert found == pytest.approx(evaluate_each(features[own % 3 > 0], labels[own % 3 > 0]), rel=1e-9)
    assert found["queries"] == 80
    with pytest.raises(ValueError, match="no query has an image to find"):
        evaluate_labels(features, labels, features, labels + 4)


def test_ground_truth_of_easy_and_hard_worked_by_hand():
    """
    The first query ranks images 0, 1, 2, 3; easy is 1, hard 3, ignored 0.

    Easy: 0 and 3 are left out, 1 is first: 1. Medium: 1 and 3 among 1, 2, 3: (1 + (1/2 + 2/3)/2) / 2 = 19/24. Hard: 3
    among 2, 3: (0 + 1/2)/2 = 1/4. The second query ranks 3, 2, 1, 0, with 2 hard: none easy; medium and hard
    (0 + 1/2)/2 = 1/4.
    """
    angles = torch.tensor([0.0, 20, 40, 60]) * torch.pi / 180
    index = torch.stack([angles.cos(), angles.sin()], 1)
    queries = torch.tensor([[0.0, 2.0], [5.0, -0.1], [1.0, 1.0]])
    truth = GroundTruth(
        {"a": {"easy": ["1"], "hard": ["3"], "ignored": ["0"]}, "b": {"hard": ["2"]}},
    ).find(["b", "a", "c"], ["0", "1", "2", "3"])
    found = evaluate_ground_truth(queries, index, truth)
    assert {name: (setup["mAP"], setup["queries"]) for name, setup in found.items()} == {
        "easy": (pytest.approx(100), 1),
        "medium": (pytest.approx(100 * (19 / 24 + 1 / 4) / 2), 2),
        "hard": (pytest.approx(25), 2),
    }
    assert found["hard"]["mP@5"] == pytest.approx(50)  # the last positive is second


def test_an_image_is_not_its_own_positive(data):
    features, _ = data
    truth = GroundTruth({"3": {"positive": ["3", "4"], "ignored": ["7"]}}).find(range(120), range(120))
    found = evaluate_ground_truth(features, features, truth, torch.arange(120))
    without = GroundTruth({"3": {"positive": ["4"], "ignored": ["7", "3"]}}).find(range(120), range(120))
    assert found == evaluate_ground_truth(features, features, without)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"top": 0}, "top=0 must be between 1 and the 5 images"),
        ({"top": 6}, "between 1 and the 5 images"),
        ({"top": 5, "own": torch.tensor([0, 1])}, "between 1 and the 4 images"),
        ({"top": 1, "search": "annoy"}, "unknown search 'annoy': allowed are auto, faiss, exact"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        search_index(torch.randn(2, 3), torch.randn(5, 3), **arguments)


def test_without_faiss(data, monkeypatch):
    features, _ = data
    monkeypatch.setattr(ranking, "find_spec", lambda name: None)
    monkeypatch.setattr(ranking, "_faiss_finder", None)
    assert search_index(features, features, 3)[1].shape == (120, 3)
