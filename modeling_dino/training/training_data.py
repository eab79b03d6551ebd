# SPDX-License-Identifier: Apache-2.0
"""Images as pretraining reads them: in any order, each as its crops.

What an item is depends on the seed, the epoch and the number of the image alone: neither on how many workers and
processes there are, nor on where a run was stopped and resumed.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from ..data.decoding import check_on_error
from ..data.image_source import IndexedSource
from ..data.image_values import EIGHT_BITS, Decoded
from ..data.reader import decode_record
from ..runtime.extras import require
from .multi_crop import MultiCrop


logger = logging.get_logger(__name__)

MAX_REPLACEMENTS = 100  # images tried in the place of one that cannot be read


class UnreadableImage(ValueError):
    """
    Says that an image cannot be read.

    Args:
        message: which, and why; or the traceback with this at its end that PyTorch's loader makes of it in a worker.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f"{__name__}.UnreadableImage: ")[2].strip())


class SourceImages(Sequence):
    """
    Decodes the images of a source.

    Args:
        num_channels, rescale_factor: see [`read_image`].
    """

    def __init__(self, source: IndexedSource, num_channels: int = 3, rescale_factor: float = EIGHT_BITS):
        self.source, self.num_channels, self.rescale_factor = source, num_channels, rescale_factor
        self._noted: set[str] = set()

    def __len__(self) -> int:
        return self.source.num_images

    def __getitem__(self, index: int) -> Decoded:
        """Raises UnreadableImage if it cannot be read; names it and says why."""
        record = self.source.record(index)
        try:
            image, note = decode_record(record, self.num_channels, rescale_factor=self.rescale_factor)
        except ValueError as error:
            raise UnreadableImage(f"{record.name}: {error}") from error
        if note and note not in self._noted:
            self._noted.add(note)
            logger.warning(f"{record.name}, and perhaps others: {note}")
        return image


class ReplacingDataset(Dataset):
    """
    Knows which images cannot be read, in all workers of this process; another is to stand in the place of each.

    Subclasses read an image with `read(index)`, which may raise `UnreadableImage`.

    Args:
        num_images: that can be asked for.
        on_error: `"skip"` unreadable images, or `"fail"` at the first.
        instead: what happens in the place of an unreadable image, in the warning.
    """

    def __init__(self, num_images: int, on_error: str = "skip", instead: str = "another image stands in its place"):
        check_on_error(on_error)
        self.on_error, self.instead = on_error, instead
        self._is_unreadable = torch.zeros(num_images, dtype=torch.bool).share_memory_()  # workers write to it

    def read(self, index: int) -> Any:
        """Reads an image."""
        raise NotImplementedError

    def try_to_read(self, index: int) -> Any:
        """Reads an image; returns UnreadableImage, and warns the first time, if it cannot be read."""
        try:
            return self.read(index)
        except UnreadableImage as error:
            if self.on_error == "fail":
                raise UnreadableImage(f"cannot read {error} (--on-error skip goes on without it)") from error
            if not self._is_unreadable[index]:
                self._is_unreadable[index] = True
                logger.warning(f"skipped {error}; {self.instead}")
            return error

    def unreadable(self) -> dict[str, str]:
        """Returns the images that no worker of this process could read so far: name -> reason."""
        found = {}
        for index in self._is_unreadable.nonzero().flatten().tolist():
            try:
                self.read(index)
            except UnreadableImage as error:
                name, _, reason = str(error).partition(": ")
                found[name] = reason
        return found


class MultiCropDataset(ReplacingDataset):
    """
    Makes crops of images: each item is `{"pixel_values": [crop, …]}`, with other crops in each epoch; and
    with `"gram_pixel_values"`, where a Gram teacher sees other crops.

    An image that cannot be read is warned of, and another stands in its place, so that all batches are of one size.
    Where the crops have several sizes (`needs_step`), an image must be asked for by the number of its step in the
    epoch and its own, as [`StepSampler`] gives them.

    Args:
        images: by Pillow, arrays or tensors, as [`MultiCrop`] takes them; reading one may raise `UnreadableImage`.
        multi_crop: makes the crops; a [`MultiCrop`], or any function of an image and a seed.
        seed: of everything that is drawn.
        on_error: `"skip"` unreadable images, or `"fail"` at the first.

    Raises:
        ValueError: if there are no images.
    """

    def __init__(self, images: Sequence, multi_crop: MultiCrop, seed: int = 0, on_error: str = "skip"):
        if not len(images):
            raise ValueError("there are no images to train on")
        super().__init__(len(images), on_error)
        self.images, self.multi_crop, self.seed = images, multi_crop, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def needs_step(self) -> bool:
        """Whether the crops have several sizes, one in each step."""
        return isinstance(self.multi_crop, MultiCrop) and len(self.multi_crop.of_sizes) > 1

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, list[torch.Tensor]]:
        """
        Raises UnreadableImage if the image cannot be read, with `on_error="fail"`; or none of a hundred can; and
        ValueError if its step is needed and not given.
        """
        step, index = index if isinstance(index, tuple) else (None, index)
        seed = draw_seed(self.seed, self.epoch, index)
        image = self._image_or_another(index, seed)
        if isinstance(self.multi_crop, MultiCrop):
            return self.multi_crop.with_gram_crops(image, seed, self._size_of_step(step) if self.needs_step else 0)
        return {"pixel_values": self.multi_crop(image, seed)}

    def read(self, index: int) -> Any:
        return self.images[index]

    def set_epoch(self, epoch: int):
        """Sets the epoch of the items; workers must be started afterwards."""
        self.epoch = epoch

    def _size_of_step(self, step: int | None) -> int:
        """Draws the number of the size of the crops of a step."""
        if step is None:
            raise ValueError(
                "the size of the crops is drawn for each step, which is not given: take a StepSampler, as DinoTrainer "
                "does, or crops of one size"
            )
        sizes, shares = range(len(self.multi_crop.of_sizes)), self.multi_crop.config.size_shares
        return random.Random(f"{self.seed}-{self.epoch}-{step}-size").choices(sizes, shares)[0]

    def _image_or_another(self, index: int, seed: int) -> Any:
        """Returns the image, or, if it cannot be read, one that is drawn with the seed."""
        for attempt in range(1, MAX_REPLACEMENTS + 1):
            image = self.try_to_read(index)
            if not isinstance(image, UnreadableImage):
                return image
            index = draw_seed(seed, attempt) % len(self.images)
        raise UnreadableImage(f"{MAX_REPLACEMENTS} images in a row cannot be read; the last: {image}") from image


class StepSampler(Sampler):
    """
    Gives images in the order of another sampler, each as the number of its step in the epoch, and its own.

    Args:
        sampler: of the numbers of all images of an epoch, the same in all processes.
        batch_size: of a step, over all processes and accumulated parts.
    """

    def __init__(self, sampler: Sampler, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((position // self.batch_size, index) for position, index in enumerate(self.sampler))

    def set_epoch(self, epoch: int):
        """Tells the other sampler the epoch."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def draw_seed(*numbers: int) -> int:
    """Returns a pseudo-random number of 63 bits that depends on the given numbers alone."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def gather_unreadable(dataset: ReplacingDataset) -> dict[str, str]:
    """Returns the images that some process could not read, and why."""
    found = require("accelerate.utils").gather_object([dataset.unreadable()])
    return {name: reason for part in found for name, reason in part.items()}
