# SPDX-License-Identifier: Apache-2.0
"""Features of the teacher during pretraining, of images that several processes share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from ..modeling_dino import DinoModel
from ..runtime.extras import require
from ..runtime.processes import processes


T = TypeVar("T")


def batches_of_process(batches: Iterable[T]) -> Iterator[tuple[int, T]]:
    """Returns the batches that this process computes, each with its number among all."""
    state = processes()
    return ((i, batch) for i, batch in enumerate(batches) if i % state.num_processes == state.process_index)


def gather_features(
    model: DinoModel, batches: Iterable[tuple[int, torch.Tensor | Sequence[torch.Tensor], Sequence]]
) -> tuple[torch.Tensor, list[Any]] | None:
    """
    Computes the features of batches, of which each process has some; all get the same.

    Args:
        batches: each with its number among all, pixel values on the model's device, (B, C, H, W), or a list of
            (C, H, W) of different sizes, and a list of what is known of its images.

    Returns:
        features, (N, D), in float32 on the model's device, in the order of the batches' numbers, and what is known of
        the images; None if there are no batches.
    """
    found = []
    for number, pixel_values, known in batches:
        with torch.inference_mode():
            features = model(pixel_values).pooler_output
        features = features if isinstance(features, torch.Tensor) else torch.stack(features)
        found.append((number, features.float().cpu(), list(known)))
    found = sorted(require("accelerate.utils").gather_object(found), key=lambda batch: batch[0])
    if not found:
        return None
    features = torch.cat([features for _, features, _ in found]).to(model.device)
    return features, [item for _, _, known in found for item in known]


def pixel_values_of(
    normalize: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor | list[torch.Tensor], device: torch.device
) -> torch.Tensor | list[torch.Tensor]:
    """
    Normalises a batch of transformed images, (B, C, H, W), or a list of those of different sizes, by the function
    of the image transform for this device.
    """
    if isinstance(pixels, torch.Tensor):
        return normalize(pixels.to(device, non_blocking=True))
    return [normalize(image[None].to(device))[0] for image in pixels]
