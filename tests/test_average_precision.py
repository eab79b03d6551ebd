"""Average precision against cases worked by hand, scikit-learn's, and a loop written from the formula."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from modeling_dino.average_precision import average_precision


def rankings(seed: int, queries: int = 40, images: int = 57) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Similarities, positive and ignored images; every query has some of the first."""
    generator = torch.Generator().manual_seed(seed)
    similarities = torch.randn(queries, images, generator=generator)
    kinds = torch.rand(queries, images, generator=generator)
    positive = kinds < 0.15
    positive[:, 0] = True
    return similarities, positive, (kinds > 0.7) & ~positive


def by_a_loop(
    similarities: np.ndarray, positive: np.ndarray, ignored: np.ndarray, trapezoidal: bool, ks: tuple[int, ...]
) -> tuple[float, list[float]]:
    """One query: its ranking without the ignored images, then the area under precision over recall."""
    ranking = [image for image in np.argsort(-similarities, kind="stable") if not ignored[image]]
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


def test_a_case_worked_by_hand():
    """
    Ranking: ignored, positive, negative, ignored, positive, negative. Without the ignored: + - + -.

    Plain: (1/1 + 2/3) / 2 = 5/6. Trapezoids: ((1 + 1)/2 + (1/2 + 2/3)/2) / 2 = (1 + 7/12) / 2 = 19/24.
    Precision at 1: 1; at 2: 1/2; at 5, where the last positive is third: 2/3.
    """
    similarities = torch.tensor([[0.6, 0.9, 0.8, 0.1, 0.7, 0.5]])
    #                            -     ign   +    -    -> ranking 1, 2, 4, 0, 5, 3
    positive = torch.tensor([[0, 0, 1, 0, 0, 1]]).bool()
    ignored = torch.tensor([[1, 1, 0, 0, 0, 0]]).bool()
    average, precision = average_precision(similarities, positive, ignored, precision_at=(1, 2, 5))
    assert average.tolist() == [pytest.approx(5 / 6, abs=1e-15)]
    assert precision.tolist() == [pytest.approx([1, 1 / 2, 2 / 3], abs=1e-15)]
    average, _ = average_precision(similarities, positive, ignored, trapezoidal=True)
    assert average.tolist() == [pytest.approx(19 / 24, abs=1e-15)]


def test_best_worst_and_none():
    """The first of three, the last of three (trapezoid: (0 + 1/3) / 2), and nothing to find."""
    similarities = torch.tensor([[3.0, 2.0, 1.0]] * 3)
    positive = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()
    plain, precision = average_precision(similarities, positive)
    trapezoidal, _ = average_precision(similarities, positive, trapezoidal=True)
    assert plain[:2].tolist() == pytest.approx([1, 1 / 3], abs=1e-15)
    assert trapezoidal[:2].tolist() == pytest.approx([1, 1 / 6], abs=1e-15)
    assert math.isnan(plain[2])
    assert math.isnan(trapezoidal[2])
    assert precision[2].isnan().all()


def test_equal_similarities_are_ranked_by_their_place():
    average, _ = average_precision(torch.zeros(1, 4), torch.tensor([[0, 1, 0, 1]]).bool())
    assert average.item() == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-15)


@pytest.mark.parametrize("trapezoidal", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_loop_written_from_the_formula(seed, trapezoidal):
    similarities, positive, ignored = rankings(seed)
    ks = (1, 5, 10, 50)
    found = average_precision(similarities, positive, ignored, trapezoidal=trapezoidal, precision_at=ks)
    expected = [by_a_loop(*(part.numpy() for part in row), trapezoidal, ks) for row in zip(*rankings(seed))]
    np.testing.assert_allclose(found[0], [average for average, _ in expected], rtol=1e-14)
    np.testing.assert_allclose(found[1], [precision for _, precision in expected], rtol=1e-14)


def test_scikit_learn():
    similarities, positive, ignored = rankings(3)
    average, _ = average_precision(similarities, positive, ignored)
    expected = [
        average_precision_score(y[~out].numpy(), scores[~out].double().numpy())
        for scores, y, out in zip(similarities, positive, ignored)
    ]
    np.testing.assert_allclose(average, expected, rtol=1e-13)
