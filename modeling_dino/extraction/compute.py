# SPDX-License-Identifier: Apache-2.0
"""Computes the features of batches of images, in threads, and in smaller batches where memory does not suffice."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock, Semaphore
from typing import Any

import torch
from transformers import ImageProcessingMixin

from ..configuration_dino import DinoConfig
from ..data.reader import Images
from ..hub.loading import fixed_size
from ..modeling_dino import DinoModel, stack_by_size
from ..runtime.extras import require
from ..runtime.finite import check_finite
from .feature_models import Features
from .features import check_features, image_features, is_of_patches
from .options import ExtractionSettings


THREADS_OF_DEVICE = 2  # one prepares a batch while the device computes the other's


class FeatureComputer:
    """
    Computes features of batches of images, in float32 on the CPU; several threads may call it.

    Images of one size in a batch of different sizes are computed together, which is 5 to 10 % faster than one by one
    for a ViT-S on a CPU. To sort the images of a whole shard by size was not faster.

    Once memory does not suffice for a batch, all are computed in smaller ones from then on.

    Args:
        features: computes them of pixel values on the device.
        normalize: makes pixel values of transformed images.
        shapes: columns of features, and the shape of an image's.
        callers: how many threads call it at a time; by default those of [`computing_threads`].
    """

    def __init__(
        self,
        features: Features,
        device: torch.device,
        settings: ExtractionSettings,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        shapes: dict[str, tuple[int, ...]],
        callers: int | None = None,
    ):
        self.features, self.device = features, device
        self.settings, self.normalize, self.shapes = settings, normalize, shapes
        self.max_batch_size = settings.batch_size
        self.callers = batches_at_once(device) if callers is None else callers
        self.places, self.waits_for_all = Semaphore(self.callers), Lock()

    @torch.inference_mode()
    def __call__(self, images: Images) -> dict[str, torch.Tensor]:
        """
        Computes the features of a batch; raises ValueError if memory does not suffice for a single image, or a feature
        is not finite.
        """
        if images.pixels is None:
            return {column: torch.empty(0, *shape) for column, shape in self.shapes.items()}
        is_one_size = isinstance(images.pixels, torch.Tensor)
        batches, order = ([images.pixels], slice(None)) if is_one_size else stack_by_size(images.pixels)
        size = min(self.max_batch_size, len(images.pixels))
        with self.places:
            parts = self._within_memory(batches, size)
        if parts is None:
            with self._alone():
                parts = self._in_smaller_parts(batches, size)
        features = {column: torch.cat([part[column] for part in parts])[order] for column in self.shapes}
        names = [row.get("path", row.get("index")) for row in images.rows]
        for values in features.values():
            check_finite(values, "the feature of", names, self.settings.dtype)
        return features

    def _within_memory(self, batches: Iterable[torch.Tensor], size: int) -> list[dict[str, torch.Tensor]] | None:
        """Computes batches in parts of a size; returns None where memory does not suffice."""
        try:
            return [self._compute(part) for batch in batches for part in batch.split(size)]
        except RuntimeError as error:
            memory = require("accelerate.utils.memory")
            if not memory.should_reduce_batch_size(error):
                raise
        memory.clear_device_cache(garbage_collection=True)  # where the error, and what it holds, is gone
        return None

    def _in_smaller_parts(self, batches: Iterable[torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
        """Halves the size of the parts until they fit; one image is tried, too, where it did not fit beside others."""
        while True:
            size = min(max(1, size // 2), self.max_batch_size)  # which another thread may have lowered
            self.max_batch_size = size
            if (parts := self._within_memory(batches, size)) is not None:
                return parts
            if size == 1:
                raise ValueError(f"one image is too large for the memory of {self.device}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other thread computes, whose batch would take memory, too, and lets none begin."""
        with self.waits_for_all:
            for _ in range(self.callers):
                self.places.acquire()
            try:
                yield
            finally:
                self.places.release(self.callers)

    def _compute(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(self.normalize(pixels.to(self.device, non_blocking=True)))
        return {column: features[kind].float().cpu() for column, kind in self.settings.columns.items()}


def batches_at_once(device: torch.device) -> int:
    """Returns how many batches are computed at a time, each by a thread of its own."""
    return torch.get_num_threads() if device.type == "cpu" else THREADS_OF_DEVICE


@contextmanager
def computing_threads(device: torch.device) -> Iterator[Callable[[Callable, Iterable], Iterator[tuple[Any, Any]]]]:
    """
    Gives a function that computes batches in threads: (function, batches) -> batches and results, in order.

    On a CPU there are as many threads as PyTorch would give to one batch, each with a batch of its own. That is
    faster, and PyTorch's last digits depend on the number of threads that share a batch.
    """
    num_threads, num_batches = torch.get_num_threads(), batches_at_once(device)
    on_cpu = device.type == "cpu"
    with ThreadPoolExecutor(num_batches) as pool:
        try:
            if on_cpu:
                torch.set_num_threads(1)
            yield partial(_map_in_order, pool, num_batches)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)


def _map_in_order(
    pool: ThreadPoolExecutor, num_ahead: int, function: Callable, items: Iterable
) -> Iterator[tuple[Any, Any]]:
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > num_ahead:
            first, result = waiting.popleft()
            yield first, result.result()
    for item, result in waiting:
        yield item, result.result()


def feature_shapes(
    config: DinoConfig, processor: ImageProcessingMixin, settings: ExtractionSettings
) -> dict[str, tuple[int, ...]]:
    """
    Returns the columns of features, and the shape of an image's, from a model without memory behind its weights.
    Raises ValueError if the model has no such features, or they would differ in shape.
    """
    for kind in settings.columns.values():
        check_features(config, kind, *settings.pooling)
    size = fixed_size(processor)
    if any(map(is_of_patches, settings.columns.values())) and size is None:
        raise ValueError("patches of images that are not cropped differ in number: resize these to squares")
    with torch.device("meta"):
        model = DinoModel(config).eval()
        image = torch.empty(1, config.num_channels, *(size or (config.image_size, config.image_size)))
        features = image_features(model, image, list(settings.columns.values()), *settings.pooling)
    return {column: tuple(features[kind].shape[1:]) for column, kind in settings.columns.items()}
