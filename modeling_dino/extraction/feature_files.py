# SPDX-License-Identifier: Apache-2.0
"""A folder of features: Parquet shards in the order of the images, and what they are in a manifest.

    manifest.json                     what the features depend on; whether all are there; which images were skipped
    features-000000-000000.parquet    rows: path or index, [label,] feature (fixed-size list of float32)

The images come in parts, and a part in chunks of so many rows: a shard is one chunk. Its metadata says which images it
skipped, and whether it is the last of its part, so which shards are missing can be seen from those that are there.
Every file appears whole, by a rename.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.extras import require
from ..runtime.run_folder import RunFolder
from ..runtime.whole_files import whole_file


if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MANIFEST = "manifest.json"
FORMAT = "modeling-dino features 2"
SHARD_NAME = re.compile(r"features-(\d{6,})-(\d{6,})\.parquet")
SHARD_BYTES = 64 * 2**20
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 256, 16384
UNCOUNTED_SHARD_ROWS = 2048  # where the number of images is not known
SHARDS_TO_SHARE = 256  # enough for many processes to have the same number


def rows_per_shard(num_images: int | None, shapes: dict[str, tuple[int, ...]]) -> int:
    """How many images a shard covers: a matter of what is extracted alone, so that every run cuts the same."""
    shared = UNCOUNTED_SHARD_ROWS if num_images is None else -(-num_images // SHARDS_TO_SHARE)
    shared = min(max(MIN_SHARD_ROWS, shared), MAX_SHARD_ROWS)
    return max(1, min(shared, SHARD_BYTES // (4 * sum(map(math.prod, shapes.values())))))


class FeatureFolder(RunFolder):
    """
    Writes the shards and the manifest of one folder.

    Args:
        path, settings: see `RunFolder`.
        columns: columns beside the features, and their types in Arrow.
        shapes: columns of features, and the shape of an image's.
    """

    file_name, format, contents, command = MANIFEST, FORMAT, "features", "dino extract"

    def __init__(
        self,
        path: str | os.PathLike,
        settings: dict,
        columns: dict[str, str],
        shapes: dict[str, tuple[int, ...]],
    ):
        super().__init__(path, settings)
        self.columns = columns
        self.shapes = shapes
        self.shards: set[tuple[int, int]] = set()
        self.lengths: dict[int, int] = {}

    def has_results(self) -> bool:
        """Returns True: even a folder without shards has the settings that the next run must have."""
        return True

    def clear(self):
        """Removes the shards of another run."""
        for file in shard_files(self.path):
            file.unlink()

    def write(self, **facts):
        """Writes the manifest."""
        super().write(features=self.shapes, **facts)

    def find_shards(self):
        """Sees which shards are there, and how many each part has of which the last one is there."""
        pq = require("pyarrow.parquet")
        self.shards, self.lengths = set(), {}
        for file in shard_files(self.path):
            part, chunk = map(int, SHARD_NAME.fullmatch(file.name).groups())
            self.shards.add((part, chunk))
            if json.loads(pq.read_metadata(file).metadata[b"dino"])["ends_part"]:
                self.lengths[part] = chunk + 1

    def is_whole(self, part: int) -> bool:
        """Whether all shards of a part were there when last looked."""
        return part in self.lengths and all((part, chunk) in self.shards for chunk in range(self.lengths[part]))

    def write_shard(self, part: int, chunk: int, rows: list[dict], features: "dict[str, np.ndarray]", remarks: dict):
        """
        Writes a shard.

        Args:
            rows: what is in the columns beside the features.
            features: (rows, *shape) of each of `shapes`, float32.
            remarks: `skipped` and `notes`, each name of an image -> text, and `ends_part`.

        Raises:
            OSError: if it cannot be written; the other shards stay as they are.
        """
        pa, pq = require("pyarrow"), require("pyarrow.parquet")
        columns = {
            name: pa.array([row.get(name) for row in rows], pa.type_for_alias(kind))
            for name, kind in self.columns.items()
        }
        for name, shape in self.shapes.items():
            values = pa.array(features[name].reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(values, math.prod(shape))
        table = pa.table(columns).replace_schema_metadata({"dino": json.dumps(remarks)})
        with whole_file(self.path / f"features-{part:06d}-{chunk:06d}.parquet") as partial:
            pq.write_table(table, partial, compression="none", use_dictionary=["label"])

    def count_rows(self) -> int:
        """Rows in the shards that are there."""
        pq = require("pyarrow.parquet")
        return sum(pq.read_metadata(file).num_rows for file in shard_files(self.path))

    def complete(self, num_parts: int) -> dict:
        """
        Completes the manifest from the shards, and returns it.

        Raises:
            OSError: if a shard is missing.
        """
        pq = require("pyarrow.parquet")
        self.find_shards()
        if not all(map(self.is_whole, range(num_parts))):
            raise OSError(f"{self.path} lacks shards that were written: run it again, and it goes on")
        rows, skipped, notes = 0, {}, {}
        for file in shard_files(self.path):
            metadata = pq.read_metadata(file)
            remarks = json.loads(metadata.metadata[b"dino"])
            rows += metadata.num_rows
            skipped.update(remarks["skipped"])
            notes.update(remarks["notes"])
        self.close(rows=rows, skipped=skipped, notes=notes)
        return self.facts


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(file for file in Path(folder).iterdir() if SHARD_NAME.fullmatch(file.name))


def load_features(folder: str | os.PathLike) -> "dict[str, np.ndarray]":
    """
    The features that `dino extract` wrote, in the order of the images.

    Returns:
        `feature`: (rows, *shape), float32, of several kinds `feature_cls` and so on; `path` or `index`: (rows,);
        `label`: (rows,), where the images have classes. Features of a single shard are not copied, and not to be
        written to; those of several are copied once.

    Raises:
        ValueError: if it is not a folder of features, or a run has not finished.
    """
    np, pq = require("numpy"), require("pyarrow.parquet")
    manifest = FeatureFolder.read(folder)
    if not manifest["complete"]:
        raise ValueError(f"{folder} is not complete: run the same `dino extract` again, and it goes on")
    parts: dict[str, list] = {}
    arrays: dict[str, Any] = {}
    start = 0
    for file in shard_files(folder):
        table = pq.read_table(file)
        for name in table.column_names:
            if name not in manifest["features"]:
                parts.setdefault(name, []).append(table[name].to_numpy())
                continue
            values = _values(table[name], manifest["features"][name])
            if len(values) == manifest["rows"]:
                arrays[name] = values
            elif len(values):
                arrays.setdefault(name, np.empty((manifest["rows"], *values.shape[1:]), np.float32))
                arrays[name][start : start + len(values)] = values
        start += len(table)
    return {**{name: np.concatenate(columns) for name, columns in parts.items()}, **arrays}


def _values(column: "pa.ChunkedArray", shape: list[int]) -> "np.ndarray":
    """A column of lists as (rows, *shape), without a copy."""
    pa = require("pyarrow")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    values = (chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)) if chunks else None
    if values is None:
        return require("numpy").empty((0, *shape), "float32")
    return values.flatten().to_numpy().reshape(len(values), *shape)


__all__ = ["FeatureFolder", "load_features", "rows_per_shard", "shard_files"]
