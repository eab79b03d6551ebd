# SPDX-License-Identifier: Apache-2.0
"""Plans an extraction: which shards are left to compute, by which process, and in which batches."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..data.image_source import ImageSource
from ..data.reader import Batch
from .feature_files import FeatureFolder, rows_per_shard


@dataclass(frozen=True)
class Place:
    """The shard (part and chunk) that a batch belongs to, and whether it is the last of its chunk and its part."""

    part: int
    chunk: int
    ends_chunk: bool
    ends_part: bool


class Plan:
    """
    Gives the batches that are left to this process, in order; none spans two shards.

    Processes share the parts of the source, so that each is read once; where there are fewer parts than processes,
    they share the shards.
    """

    def __init__(self, source: ImageSource, folder: FeatureFolder, batch_size: int, rank: int, num_processes: int):
        self.source, self.folder, self.batch_size = source, folder, batch_size
        self.rank, self.num_processes = rank, num_processes
        self.shard_rows = rows_per_shard(source.num_images, folder.shapes)
        self.parts = source.parts(self.shard_rows)
        self.share_parts = len(self.parts) >= self.num_processes

    @property
    def num_images(self) -> int | None:
        """The number of images that are left to this process; None where only reading them tells."""
        left = [part for i, part in enumerate(self.parts) if self._has_to_read(i)]
        return sum(map(len, left)) if all(isinstance(part, range) for part in left) else None

    def __iter__(self) -> Iterator[Batch]:
        for i, part in enumerate(self.parts):
            if self._has_to_read(i):
                yield from self._batches_of(i, part)

    def _has_to_read(self, part: int) -> bool:
        is_mine = not self.share_parts or part % self.num_processes == self.rank
        return is_mine and not self.folder.is_whole(part)

    def _has_to_compute(self, part: int, chunk: int) -> bool:
        is_mine = self.share_parts or (part + chunk) % self.num_processes == self.rank
        return is_mine and (part, chunk) not in self.folder.shards

    def _batches_of(self, i: int, part: Any) -> Iterator[Batch]:
        records = iter(self.source.read(part))
        ahead = list(itertools.islice(records, 1))
        for chunk in itertools.count():
            is_left, rows = self._has_to_compute(i, chunk), self.shard_rows
            while rows:
                batch = ahead + list(itertools.islice(records, min(self.batch_size, rows) - 1))
                ahead = list(itertools.islice(records, 1))
                rows = (rows - len(batch)) if ahead else 0
                if is_left:
                    yield Batch(batch, Place(i, chunk, ends_chunk=not rows, ends_part=not ahead))
            if not ahead:
                return
