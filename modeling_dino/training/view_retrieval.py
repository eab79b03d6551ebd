# SPDX-License-Identifier: Apache-2.0
"""Watches pretraining without labels: how often the teacher finds the other view of an image among those of others."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from ..modeling_dino import DinoModel
from .multi_crop import MultiCrop
from .teacher_features import batches_of_process, gather_features
from .training_data import ReplacingDataset, UnreadableImage, draw_seed


SHARE, MOST, LEAST = 0.1, 1000, 10  # of the images that are held out
BATCH_SIZE = 16  # images, of two views each


class ViewRetrieval:
    """
    Looks up, by the cosine of a model's features, a view of each image among the other views of all, and the reverse.

    The two views are drawn as the global crops of the training, once: they are the same in each evaluation.

    Args:
        images: by Pillow, arrays or tensors, which are not trained on; reading one may raise `UnreadableImage`.
        multi_crop: the crops of the training.
        seed: of the views.
        num_workers: processes that read images.
        on_error: `"skip"` unreadable images, or `"fail"` at the first.

    Returns:
        `view_top1`: the share of views, in percent, of which the other view of the same image is the nearest. By
        chance, and with the same feature for all, it is 100 over the number of images.

    Raises:
        ValueError: if fewer than two of the images can be read.
    """

    metrics = ("view_top1",)

    def __init__(
        self,
        images: Sequence,
        multi_crop: MultiCrop,
        seed: int = 0,
        num_workers: int = 0,
        on_error: str = "skip",
    ):
        self.views = ImageViews(images, multi_crop.of_global_pairs(), seed, on_error)
        self.num_workers = num_workers

    def __call__(self, model: DinoModel) -> dict[str, float]:
        batches = list(batches_of_process(range(-(-len(self.views) // BATCH_SIZE))))
        loader = DataLoader(
            self.views,
            batch_sampler=[range(len(self.views))[i * BATCH_SIZE : (i + 1) * BATCH_SIZE] for i, _ in batches],
            num_workers=self.num_workers,
            collate_fn=readable_views,
            generator=torch.Generator(),  # or the loader would draw a seed from the one of the training
        )
        gathered = gather_features(
            model,
            (
                (number, torch.cat(views).to(model.device), range(len(views)))
                for (number, _), views in zip(batches, loader)
                if views
            ),
        )
        if gathered is None or len(gathered[1]) < 2:
            raise ValueError("fewer than two of the images that are held out can be read")
        return {"view_top1": retrieval_accuracy(*gathered[0].unflatten(0, (-1, 2)).unbind(1))}


class ImageViews(ReplacingDataset):
    """Makes two views of each image, (2, C, h, w), always the same; None of one that cannot be read."""

    def __init__(self, images: Sequence, multi_crop: MultiCrop, seed: int, on_error: str = "skip"):
        super().__init__(len(images), on_error, instead="the watch goes without it")
        self.images, self.multi_crop, self.seed = images, multi_crop, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor | None:
        image = self.try_to_read(index)
        if isinstance(image, UnreadableImage):
            return None
        return torch.stack(self.multi_crop(image, draw_seed("views", self.seed, index)))

    def read(self, index: int) -> Any:
        return self.images[index]


def readable_views(items: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Returns the views of the images that can be read."""
    return [views for views in items if views is not None]


def retrieval_accuracy(first: torch.Tensor, second: torch.Tensor) -> float:
    """
    Returns how often the nearest of `second` to a row of `first`, by cosine, is that of the same number, and the
    reverse; the mean of both, in percent.

    Args:
        first, second: (N, D).
    """
    similarities = normalize(first, dim=1) @ normalize(second, dim=1).T
    numbers = torch.arange(len(first), device=first.device)
    found = [similarities.argmax(dim) == numbers for dim in (1, 0)]
    return 100 * torch.stack(found).double().mean().item()


def draw_held_out(num_images: int, seed: int) -> list[int]:
    """
    Draws the images that are held out of a training to watch it: a tenth, at most a thousand. Raises ValueError if
    they are too few to tell anything.
    """
    count = min(round(SHARE * num_images), MOST)
    if count < LEAST:
        raise ValueError(
            f"{num_images} images are too few to hold {SHARE:.0%} of them out to watch the training: give at least "
            f"{round(LEAST / SHARE)}, or labelled ones by --eval-knn, or set training.load_best_model_at_end=false"
        )
    return sorted(random.Random(f"{seed}-held-out").sample(range(num_images), count))
