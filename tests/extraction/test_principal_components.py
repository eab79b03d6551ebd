import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from modeling_dino.extraction.principal_components import Moments


def moments_of(vectors: torch.Tensor, batch_size: int) -> Moments:
    moments = Moments(vectors.shape[1])
    for batch in vectors.split(batch_size):
        moments.add(batch)
    return moments


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_equal_to_scikit_learn_whatever_the_batches(batch_size, offset):
    vectors = torch.randn(300, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64) + offset
    ours = moments_of(vectors, batch_size).principal_components(3)
    theirs = PCA(3, svd_solver="full").fit(vectors.numpy())
    signs = np.sign(theirs.components_[np.arange(3), np.abs(theirs.components_).argmax(1)])[:, None]
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(ours.components, theirs.components_ * signs, atol=1e-10)
    np.testing.assert_allclose(ours.variances, theirs.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(ours.variances / ours.total_variance, theirs.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(ours.project(vectors), theirs.transform(vectors.numpy()) * signs.T, atol=1e-9)


def test_by_hand():
    # four points on a line through (1, 1) with slope -1: variance 2 * (1 + 1 + 9 + 9) / 3 along (-1, 1) / sqrt(2)
    vectors = torch.tensor([[0.0, 2.0], [2.0, 0.0], [-2.0, 4.0], [4.0, -2.0]])
    found = moments_of(vectors, 2).principal_components(1)
    assert found.mean.tolist() == [1, 1]
    torch.testing.assert_close(found.variances, torch.tensor([40 / 3], dtype=torch.float64))
    torch.testing.assert_close(found.components.abs(), torch.full((1, 2), 0.5**0.5, dtype=torch.float64))


def test_the_sign_is_that_of_the_largest_entry():
    vectors = torch.randn(50, 6)
    found = moments_of(vectors, 50).principal_components(6)
    mirrored = moments_of(-vectors, 50).principal_components(6)
    torch.testing.assert_close(found.components, mirrored.components)
    assert (found.components.amax(1) == found.components.abs().amax(1)).all()


def test_vectors_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments_of(torch.tensor([[1.0, torch.nan]]), 1)
    with pytest.raises(ValueError, match="2 vectors of 3 dimensions do not vary in 2 directions"):
        moments_of(torch.eye(3)[:2], 2).principal_components(2)
    with pytest.raises(ValueError, match="4 vectors of 3 dimensions do not vary in 1 directions"):
        moments_of(torch.ones(4, 3), 2).principal_components(1)
    with pytest.raises(ValueError, match="0 vectors"):
        Moments(3).principal_components(1)
