# SPDX-License-Identifier: Apache-2.0
"""Learns PCA whitening, which gives all directions in which features differ the same variance.

Paper: Jégou and Chum, Negative evidences and co-occurences in image retrieval, ECCV 2012. Source:
https://github.com/facebookresearch/dino/blob/7c446df/eval_copy_detection.py (`PCA` in its utils.py).

Where we deviate: the covariance is that of centred features, as in scikit-learn's `PCA(whiten=True)`; the original
centres what it whitens, but not what it learns from. As there, variances below 1e-5 of the greatest
are raised to that.
"""

from dataclasses import dataclass

import torch

from .principal_components import Moments


MIN_VARIANCE = 1e-5  # share of the greatest variance


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
