import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from modeling_dino.extraction.principal_components import MIN_VARIANCE, learn_whitening


def correlated(num_images: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(num_images, width, generator=generator) @ mixing + 3


@pytest.mark.parametrize("dimension", [12, 5, 1])
def test_scikit_learn(dimension):
    """Up to the sign of each component."""
    train, test = correlated(200)[:150], correlated(200)[150:]
    whitened = learn_whitening(train, dimension)(test)
    theirs = PCA(dimension, whiten=True, svd_solver="full").fit(train.double().numpy())
    expected = theirs.transform(test.double().numpy())
    signs = np.sign((whitened.numpy() * expected).sum(0))
    assert whitened.dtype == torch.float32
    np.testing.assert_allclose(whitened * signs, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_what_it_learned_from_is_white():
    features = correlated(200)
    whitened = learn_whitening(features)(features).double()
    torch.testing.assert_close(whitened.mean(0), torch.zeros(12).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(12).double(), rtol=0, atol=1e-5)


def test_directions_without_variance_do_not_explode():
    """Ten times one direction, and nothing in the others: these count as MIN_VARIANCE of it."""
    features = torch.zeros(5, 3)
    features[:, 1] = torch.tensor([-2.0, -1, 0, 1, 2])  # variance 2.5
    whitening = learn_whitening(features)
    torch.testing.assert_close(
        whitening(torch.tensor([[0.0, 1, 0], [1, 0, 0]])).abs().amax(1),
        torch.tensor([2.5**-0.5, (2.5 * MIN_VARIANCE) ** -0.5]),
    )


@pytest.mark.parametrize(
    ("features", "dimension", "says"),
    [
        (correlated(50), 13, "50 images with features 12 wide allow 1 to 12"),
        (correlated(50), 0, "allow 1 to 12"),
        (correlated(8), 8, "8 images with features 12 wide allow 1 to 7"),
        (correlated(8), None, "whitening to 12 dimensions: 8 images"),
        (torch.ones(20, 4), 2, "features that are all the same"),
    ],
)
def test_what_cannot_be_learned_is_refused(features, dimension, says):
    with pytest.raises(ValueError, match=says):
        learn_whitening(features, dimension)
