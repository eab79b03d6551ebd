# SPDX-License-Identifier: Apache-2.0
"""Compares an exported graph with the model in PyTorch, on other sizes and batches than it was recorded with."""

from collections.abc import Iterator

import torch
from torch import nn

from .engines import Graph


# how much an output may differ, of the largest of its values, by the dtype of the arithmetic
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
BATCH_SIZES = (3, 1, 5)


def random_images(shape: tuple[int, ...], uint8: bool, seed: int = 0) -> torch.Tensor:
    """Returns random pixel values, or random images of 8 bits; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    if uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def other_shapes(side: int, least: int, fixed: tuple[int | None, int | None]) -> Iterator[tuple[int, int, int]]:
    """
    Gives batch size, height and width of images to compare by.

    Args:
        side: of the images that the model is for, in pixels.
        least: the least side of an image, in pixels.
        fixed: batch size and side, where the graph takes no other.
    """
    batch_size, image_size = fixed
    sides = [(side, side), (side * 2 // 3, side), (side * 3 // 2, side // 2)]
    for number, (height, width) in zip(BATCH_SIZES, [(image_size, image_size)] * 3 if image_size else sides):
        yield batch_size or number, max(height, least), max(width, least)


@torch.no_grad()
def largest_difference(graph: Graph, model: nn.Module, images: torch.Tensor) -> float:
    """
    Computes the largest difference between the outputs of a graph and those of the model, each over the largest of the
    model's values. Raises ValueError if the graph lacks an output, or gives another shape.
    """
    expected, found = model(images), graph(images)
    if expected.keys() != found.keys():
        raise ValueError(f"the graph has the outputs {', '.join(found)}, not {', '.join(expected)}")
    differences = []
    for name, values in expected.items():
        if found[name].shape != values.shape:
            raise ValueError(
                f"{name} of the graph has the shape {tuple(found[name].shape)}, not {tuple(values.shape)}"
            )
        differences.append((found[name].float() - values).abs().max() / values.abs().max())
    return max(float(x) if x.isfinite() else torch.inf for x in differences)
