"""Average precision against cases worked by hand, scikit-learn's, and a loop written from the formula."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from modeling_dino.evaluation.ranking import average_precision


def rankings(seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Similarities, positive and ignored images of some queries; every query looks for the first."""
    random = np.random.default_rng(seed)
    found = []
    for size in range(3, 60):
        kinds = random.random(size)
        kinds[0] = 0
        found.append((random.standard_normal(size).astype(np.float32), kinds < 0.2, kinds > 0.7))
    return found


def by_a_loop(
    similarities: np.ndarray, positive: np.ndarray, ignored: np.ndarray, trapezoidal: bool, ks: tuple[int, ...]
) -> tuple[float, list[float]]:
    """The ranking without the ignored images, then the area under precision over recall, step by step."""
    ranking = [image for image in np.argsort(-similarities) if not ignored[image]]
    ranks = [rank for rank, image in enumerate(ranking) if positive[image]]  # from 0
    area = 0.0
    for found, rank in enumerate(ranks):
        left = found / rank if rank > 0 else 1.0
        right = (found + 1) / (rank + 1)
        area += (left + right) / 2 / len(ranks) if trapezoidal else right / len(ranks)
    precision = []
    for k in ks:
        seen = min(k, ranks[-1] + 1)
        precision.append(sum(rank < seen for rank in ranks) / seen)
    return area, precision


def flags(*values: int) -> np.ndarray:
    return np.array(values, bool)


def test_a_case_worked_by_hand():
    """
    Ranking: ignored, positive, negative, ignored, negative, positive. Without the ignored: + - - +.

    Plain: (1/1 + 2/4) / 2 = 3/4. Trapezoids: ((1 + 1)/2 + (1/3 + 2/4)/2) / 2 = (1 + 5/12) / 2 = 17/24.
    Precision at 1: 1; at 3: 1/3; at 9, where the last positive is fourth: 2/4.
    """
    similarities = np.array([0.4, 0.9, 0.8, 0.1, 0.7, 0.5])
    positive, ignored = flags(0, 0, 1, 1, 0, 0), flags(0, 1, 0, 0, 0, 1)
    plain, precision = average_precision(similarities, positive, ignored, precision_at=(1, 3, 9))
    assert plain == pytest.approx(3 / 4, abs=1e-15)
    assert precision == pytest.approx([1, 1 / 3, 2 / 4], abs=1e-15)
    trapezoidal, _ = average_precision(similarities, positive, ignored, trapezoidal=True)
    assert trapezoidal == pytest.approx(17 / 24, abs=1e-15)


def test_the_best_and_the_worst():
    """First of three, and last of three; the trapezoid of the latter is (0 + 1/3) / 2."""
    similarities = np.array([3.0, 2.0, 1.0])
    for positive, plain, trapezoidal in ((flags(1, 0, 0), 1, 1), (flags(0, 0, 1), 1 / 3, 1 / 6)):
        assert average_precision(similarities, positive)[0] == pytest.approx(plain, abs=1e-15)
        assert average_precision(similarities, positive, trapezoidal=True)[0] == pytest.approx(trapezoidal, abs=1e-15)


def test_of_equally_similar_images_the_wrong_ones_come_first():
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        average, precision = average_precision(np.zeros(4), flags(1, 1, 0, 0)[order])
        assert average == pytest.approx((1 / 3 + 2 / 4) / 2, abs=1e-15)
        assert precision == [0, 2 / 4, 2 / 4]


@pytest.mark.parametrize("trapezoidal", [False, True])
def test_a_loop_written_from_the_formula(trapezoidal):
    for ranking in rankings(1):
        found = average_precision(*ranking, trapezoidal=trapezoidal, precision_at=(1, 5, 10, 50))
        average, precision = by_a_loop(*ranking, trapezoidal, (1, 5, 10, 50))
        assert found == (pytest.approx(average, abs=1e-14), pytest.approx(precision, abs=1e-14))


def test_scikit_learn():
    for similarities, positive, ignored in rankings(2):
        average, _ = average_precision(similarities, positive, ignored)
        expected = average_precision_score(positive[~ignored], similarities[~ignored])
        assert average == pytest.approx(expected, abs=1e-14)
