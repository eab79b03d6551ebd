# SPDX-License-Identifier: Apache-2.0
"""Plans an extraction: which shards are left to compute, by which process, and in which batches."""

import itertools
from collections.abc import Callable, Iterator
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

    Processes share the parts of the source, so that each is read once: whichever is ready takes the next, so that
    none waits long for slower ones at the end. Where there are fewer parts than processes, they share the shards.

    Args:
        take: gives each number, from 0 on, to one process.
    """

    def __init__(
        self,
        source: ImageSource,
        folder: FeatureFolder,
        batch_size: int,
        rank: int,
        num_processes: int,
        take: Callable[[], int],
    ):
        self.source, self.folder, self.batch_size = source, folder, batch_size
        self.rank, self.num_processes, self.take = rank, num_processes, take
        self.shard_rows = rows_per_shard(source.num_images, folder.shapes)
        self.parts = source.parts(self.shard_rows)
        self.share_parts = len(self.parts) >= self.num_processes
        self.left = [i for i in range(len(self.parts)) if not self.folder.is_whole(i)]

    def check_rows(self):
        """Raises ValueError if a shard that was found has other images than this version would give it."""
        for (part, chunk), shard in self.folder.shards.items():
            images = self.parts[part]
            if isinstance(images, range):
                expected = min(self.shard_rows, len(images) - chunk * self.shard_rows)
                if shard.rows + len(shard.remarks["skipped"]) != expected:
                    raise ValueError(
                        f"{self.folder.path} was begun with shards of another size, by another version: choose "
                        "another folder, or pass --overwrite to start anew"
                    )

    @property
    def num_images(self) -> int | None:
        """About how many images are left to this process; None where only reading them tells."""
        left = [self.parts[i] for i in self.left]
        return -(-sum(map(len, left)) // self.num_processes) if all(isinstance(part, range) for part in left) else None

    def __iter__(self) -> Iterator[Batch]:
        for i in self._taken() if self.share_parts else self.left:
            yield from self._batches_of(i, self.parts[i])

    def _taken(self) -> Iterator[int]:
        """Takes parts, not what is left: processes may not see the same files yet, on several machines."""
        while (part := self.take()) < len(self.parts):
            if not self.folder.is_whole(part):
                yield part

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
