# SPDX-License-Identifier: Apache-2.0
"""Computes principal components of more vectors than memory holds, from sums over batches in float64.

Batches are merged as by Chan, Golub and LeVeque, https://doi.org/10.1080/00031305.1983.10483115, where no large sums
are subtracted from each other.

PCA whitening, which gives all directions in which features differ the same variance, is after Jégou and Chum, Negative
evidences and co-occurences in image retrieval, ECCV 2012, and `PCA` in the utils.py of
https://github.com/facebookresearch/dino/blob/7c446df/eval_copy_detection.py. Where we deviate: the covariance is that
of centred features, as in scikit-learn's `PCA(whiten=True)`; the original centres only what it whitens.
"""

from dataclasses import dataclass

import torch


MIN_VARIANCE = 1e-5  # share of the greatest variance to which smaller ones are raised in whitening, as in the original


@dataclass(frozen=True)
class PrincipalComponents:
    """
    The directions in which vectors vary most.

    Args:
        mean: (D,).
        components: orthonormal rows, (K, D), by falling variance; the entry of greatest magnitude in each is positive.
        variances: variances along the components, (K,), as scikit-learn's `explained_variance_`.
        total_variance: sum of the variances along all D directions.
    """

    mean: torch.Tensor
    components: torch.Tensor
    variances: torch.Tensor
    total_variance: float

    def project(self, vectors: torch.Tensor) -> torch.Tensor:
        """Computes the coordinates of vectors along the components, (N, D) -> (N, K), in float64."""
        return (vectors.double() - self.mean) @ self.components.T


class Moments:
    """The number, mean and scatter of vectors that are added batch by batch."""

    def __init__(self, dim: int):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    def add(self, vectors: torch.Tensor):
        """Adds vectors, (N, D); raises ValueError if one is not finite."""
        if not len(vectors):
            return
        vectors = vectors.double()
        if not vectors.isfinite().all():
            raise ValueError("vectors with NaN or infinite entries have no principal components")
        mean = vectors.mean(0)
        shift, count = mean - self.mean, self.count + len(vectors)
        centred = vectors - mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(vectors) / count)
        self.mean += shift * (len(vectors) / count)
        self.count = count

    def principal_axes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns all variances in falling order, (D,), and their directions as rows, (D, D), of either sign."""
        variances, directions = torch.linalg.eigh(self.scatter / max(self.count - 1, 1))  # in ascending order
        return variances.flip(0).clamp_min(0), directions.flip(1).T

    def principal_components(self, num_components: int) -> PrincipalComponents:
        """Returns the first components; raises ValueError if the vectors do not vary in so many directions."""
        variances, components = self.principal_axes()
        smallest = torch.finfo(torch.float64).eps * len(variances) * variances[0]
        if not (variances[:num_components] > smallest).all() or num_components > len(variances):
            raise ValueError(
                f"{self.count} vectors of {len(variances)} dimensions do not vary in {num_components} directions"
            )
        components = components[:num_components]
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        return PrincipalComponents(
            self.mean.clone(), components * largest.sign(), variances[:num_components], float(variances.sum())
        )


@dataclass(frozen=True)
class Whitening:
    """A linear map that whitens features: of mean (D,), by components (D, dimension)."""

    mean: torch.Tensor
    components: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Whitens features, (N, D) -> (N, dimension), float32."""
        return ((features.double() - self.mean) @ self.components).float()


@torch.inference_mode()
def learn_whitening(features: torch.Tensor, dimension: int | None = None) -> Whitening:
    """
    Learns whitening from features, (N, D), finite.

    Args:
        dimension: number of principal components to keep; all D by default.

    Raises:
        ValueError: if so many cannot be learned from these features, or they do not differ.
    """
    num_images, width = features.shape
    dimension = width if dimension is None else dimension
    if not 1 <= dimension <= min(width, num_images - 1):
        raise ValueError(
            f"whitening to {dimension} dimensions: {num_images} images with features {width} wide allow 1 to "
            f"{min(width, num_images - 1)}"
        )
    moments = Moments(width)
    moments.add(features)
    variances, directions = moments.principal_axes()
    if not variances[0] > 0:
        raise ValueError("whitening cannot be learned from features that are all the same")
    variances = variances.clamp(min=MIN_VARIANCE * float(variances[0]))
    return Whitening(moments.mean, (directions.T / variances.sqrt())[:, :dimension])
