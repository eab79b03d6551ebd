# SPDX-License-Identifier: Apache-2.0
"""Whitens features by PCA, so that all directions in which they differ have the same weight.

Paper: Jégou and Chum, Negative evidences and co-occurences in image retrieval, ECCV 2012. Source:
https://github.com/facebookresearch/dino/blob/7c446df/eval_copy_detection.py (`PCA` in its utils.py).

Where we deviate: the covariance is that of centred features, as in scikit-learn's `PCA(whiten=True)`; the original
centres what it whitens, but not what it learns from. As there, variances below 1e-5 of the greatest
count as that much.
"""

from dataclasses import dataclass

import torch


MIN_VARIANCE = 1e-5  # of the greatest


@dataclass(frozen=True)
class Whitening:
    """A map from features to whitened features."""

    mean: torch.Tensor  # (D,)
    components: torch.Tensor  # (D, dimension)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Whitens features: (N, D) -> (N, dimension), float32."""
        return ((features.double() - self.mean) @ self.components).float()


@torch.inference_mode()
def learn_whitening(features: torch.Tensor, dimension: int | None = None) -> Whitening:
    """
    Learns a whitening from features (N, D), which keeps so many principal components, by default all.

    Raises:
        ValueError: if so many components cannot be learned from these features, or the features do not differ.
    """
    num_images, width = features.shape
    dimension = width if dimension is None else dimension
    if not 1 <= dimension <= min(width, num_images - 1):
        raise ValueError(
            f"whitening to {dimension} dimensions: {num_images} images with features {width} wide allow 1 to "
            f"{min(width, num_images - 1)}"
        )
    features = features.double()
    mean = features.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(features.T).reshape(width, width))  # in ascending order
    variances, directions = variances.flip(0), directions.flip(1)
    if not variances[0] > 0:
        raise ValueError("whitening cannot be learned from features that are all the same")
    variances = variances.clamp(min=MIN_VARIANCE * float(variances[0]))
    return Whitening(mean, (directions / variances.sqrt())[:, :dimension])
