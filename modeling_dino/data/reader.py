# SPDX-License-Identifier: Apache-2.0
"""Reads the records of a source: decodes and transforms each image, or says why it cannot be read.

A sampler gives batches of records, and worker processes of PyTorch's loader read them:

    batches = (Batch(records) for records in batched(all_records(source), 32))
    for images in read_batches(ImageReader(transform), batches, num_workers=2):
        images.pixels  # (N, ...), of the images that can be read
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .decoding import check_resized, one_line, read_image
from .image_source import FileRange, ImageRecord, ImageSource, RemoteFile, Unreadable
from .image_values import EIGHT_BITS, Decoded


RECORDS_AT_ONCE = 1024  # in a part of a source


@dataclass(frozen=True)
class Batch:
    """Records that are read together."""

    records: list[ImageRecord]
    place: Any = None  # where the batch belongs; the reader hands it on


@dataclass
class Images:
    """A batch that has been read."""

    place: Any
    rows: list[dict[str, Any]] = field(default_factory=list)  # columns of the images that can be read
    pixels: torch.Tensor | list[torch.Tensor] | None = None  # (rows, ...), a list if sizes differ; None without rows
    skipped: dict[str, str] = field(default_factory=dict)  # images that cannot be read: name -> reason
    notes: dict[str, str] = field(default_factory=dict)  # what was lost in reading others: name -> text

    def pin_memory(self) -> "Images":
        """Pins the pixels, which the loader asks for before copies to a GPU."""
        if isinstance(self.pixels, torch.Tensor):
            self.pixels = self.pixels.pin_memory()
        return self


class ImageReader(Dataset):
    """
    Reads and transforms batches; runs in the loader's workers.

    Args:
        transform: makes a tensor of an image; raises ValueError for one that the model cannot take.
        num_channels, rescale_factor: see [`read_image`].
        fit: is applied before `transform`: returns an image, and a note on what was changed in it, if anything.
    """

    def __init__(
        self,
        transform: Callable[[Decoded], torch.Tensor],
        num_channels: int | None = 3,
        rescale_factor: float = EIGHT_BITS,
        fit: Callable[[Decoded], tuple[Decoded, str | None]] | None = None,
    ):
        self.transform, self.num_channels, self.rescale_factor = transform, num_channels, rescale_factor
        self.fit = fit

    def __getitem__(self, batch: Batch) -> Images:
        images, pixels = Images(batch.place), []
        for record in batch.records:
            try:
                image, lost = decode_record(record, self.num_channels, rescale_factor=self.rescale_factor)
                image, changed = (image, None) if self.fit is None else self.fit(image)
                pixels.append(self.transform(image))
            except ValueError as error:
                images.skipped[record.name] = str(error)
                continue
            images.rows.append(record.columns)
            if lost or changed:
                images.notes[record.name] = "; ".join(filter(None, (lost, changed)))
        if pixels:
            has_one_size = len({image.shape for image in pixels}) == 1
            images.pixels = torch.stack(pixels) if has_one_size else pixels
        return images


def decode_record(
    record: ImageRecord,
    num_channels: int | None = 3,
    shorter_side: int | None = None,
    rescale_factor: float = EIGHT_BITS,
) -> tuple[Decoded, str | None]:
    """
    Decodes the image of a record.

    Args:
        num_channels, rescale_factor: see [`read_image`].
        shorter_side: to which the image will be resized, in pixels, if that is known.

    Returns:
        the image, and a note on what was lost in reading it, if anything.

    Raises:
        ValueError: if it cannot be read, whatever the decoder has raised, or resized; the message gives the reason in
            one line, without the name.
    """
    content = record.content
    if isinstance(content, Unreadable):
        raise ValueError(content.reason)
    try:
        if isinstance(content, (FileRange, RemoteFile)):
            content = content.read()
        image, note = read_image(content, num_channels, rescale_factor)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(one_line(error)) from error
    if shorter_side is not None:
        check_resized(image, shorter_side)
    return image, note


def all_records(source: ImageSource) -> Iterator[ImageRecord]:
    """Returns all records of a source, in order."""
    for part in source.parts(RECORDS_AT_ONCE):
        yield from source.read(part)


def batched(records: Iterable[ImageRecord], size: int) -> Iterator[list[ImageRecord]]:
    """Returns lists of so many records each; the last one may have fewer."""
    records = iter(records)
    while batch := list(islice(records, size)):
        yield batch


def read_batches(
    reader: ImageReader, batches: Iterable[Batch], num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """
    Returns a loader of `Images`, which reads batches ahead in worker processes, or with 0 of them in this one.

    `pin_memory` prepares the pixels for copies to a GPU.
    """
    return DataLoader(
        reader,
        batch_size=None,  # the batches are made
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw a seed from the one of a training
    )
