# SPDX-License-Identifier: Apache-2.0
"""Writes and loads a folder of features: Parquet shards in the order of the images, and a manifest.

    manifest.json                     what the features depend on; whether all are there; which images were skipped
    features-000000-000000.parquet    rows: path or index, [label,] feature (fixed-size list of float32)

The images come in parts, and a part in chunks of so many rows: a shard is one chunk. Its metadata says which images it
skipped, and whether it is the last of its part, so that the shards that are there tell which are missing. Every file
appears whole, by a rename.
"""

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..data.image_source import IMAGES_CHANGED
from ..runtime.extras import require
from ..runtime.run_folder import RunFolder
from ..runtime.whole_files import whole_file


MANIFEST = "manifest.json"
FORMAT = "modeling-dino features 2"
SHARD_NAME = re.compile(r"features-(\d{6,})-(\d{6,})\.parquet")
SHARD_BYTES = 64 * 2**20
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 256, 16384
UNCOUNTED_SHARD_ROWS = 2048  # where the number of images is not known
SHARDS_TO_SHARE = 256  # enough for many processes to have the same number


def rows_per_shard(num_images: int | None, shapes: dict[str, tuple[int, ...]]) -> int:
    """Returns how many images a shard covers; it depends on the extraction alone, so that every run cuts the same."""
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
    explanations = {"images_fingerprint": IMAGES_CHANGED}

    def __init__(self, path: str | os.PathLike, settings: dict, columns: dict[str, str], shapes: dict[str, tuple]):
        super().__init__(path, settings)
        self.columns, self.shapes = columns, shapes
        self.shards: dict[tuple[int, int], dict] = {}  # (part, chunk) -> rows and remarks of those that were found

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
        """Reads which shards are there, and their metadata."""
        pq = require("pyarrow.parquet")
        self.shards = {}
        for file in shard_files(self.path):
            metadata = pq.read_metadata(file)
            part, chunk = map(int, SHARD_NAME.fullmatch(file.name).groups())
            self.shards[part, chunk] = {"rows": metadata.num_rows, **json.loads(metadata.metadata[b"dino"])}

    @property
    def num_rows(self) -> int:
        """The number of rows in the shards that were found."""
        return sum(shard["rows"] for shard in self.shards.values())

    def is_whole(self, part: int) -> bool:
        """Returns whether all shards of a part were found."""
        found = (self.shards.get((part, chunk)) for chunk in itertools.count())
        return next(shard is not None for shard in found if shard is None or shard["ends_part"])

    def write_shard(self, part: int, chunk: int, rows: list[dict], features: dict[str, np.ndarray], remarks: dict):
        """
        Writes a shard; raises OSError if it cannot be written, and leaves the other shards as they are.

        Args:
            rows: the columns beside the features.
            features: (rows, *shape) for each of `shapes`, float32.
            remarks: `skipped` and `notes`, each name of an image -> text, and `ends_part`.
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

    def complete(self, num_parts: int) -> dict:
        """Completes the manifest from the shards, and returns it; raises OSError if a shard is missing."""
        self.find_shards()
        if not all(map(self.is_whole, range(num_parts))):
            raise OSError(f"{self.path} lacks shards that were written: run it again, and it goes on")
        remarks = {kind: {} for kind in ("skipped", "notes")}
        for kind, shard in itertools.product(remarks, self.shards.values()):
            remarks[kind].update(shard[kind])
        self.close(rows=self.num_rows, **remarks)
        return self.facts


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """Lists the shards of a folder, in order."""
    return sorted(file for file in Path(folder).iterdir() if SHARD_NAME.fullmatch(file.name))


def load_features(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Loads the features that `dino extract` wrote, in the order of the images.

    Returns:
        `feature`: (rows, *shape), float32, or `feature_cls` and so on for several kinds; `path` or `index`: (rows,);
        `label`: (rows,), where the images have classes. The features of a single shard are not copied, and must not
        be written to; those of several are copied once.

    Raises:
        ValueError: if it is not a folder of features, or a run has not finished.
    """
    pq = require("pyarrow.parquet")
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


def _values(column: Any, shape: list[int]) -> np.ndarray:
    """Returns a column of lists as (rows, *shape), without a copy."""
    pa = require("pyarrow")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    values = (chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)) if chunks else None
    if values is None:
        return np.empty((0, *shape), "float32")
    return values.flatten().to_numpy().reshape(len(values), *shape)
