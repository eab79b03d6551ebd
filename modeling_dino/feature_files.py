# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A folder of features: Parquet shards in the order of the images, and what they are in a manifest.

    manifest.json              the settings the features depend on; whether all are there; which images were skipped
    features-000000.parquet    rows: path, [label,] feature (fixed-size list of float32)

A shard holds a fixed range of the images, so which are missing can be seen from the names; its metadata says which
images it skipped. Every file appears whole, by a rename.
"""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .extras import require


if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest.json"
FORMAT = "modeling-dino features 1"
SHARD_BYTES = 64 * 2**20
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 256, 16384
SHARDS_TO_SHARE = 256  # enough for many processes to have the same number


def rows_per_shard(num_images: int, feature_shape: tuple[int, ...]) -> int:
    """How many images a shard covers: a matter of what is extracted alone, so that every run cuts the same."""
    shared = min(max(MIN_SHARD_ROWS, -(-num_images // SHARDS_TO_SHARE)), MAX_SHARD_ROWS)
    return max(1, min(shared, SHARD_BYTES // (4 * math.prod(feature_shape))))


class FeatureFolder:
    """Writes the shards and the manifest of one folder."""

    def __init__(self, path: str | os.PathLike, num_images: int, feature_shape: tuple[int, ...]):
        self.path = Path(path)
        self.num_images = num_images
        self.feature_shape = feature_shape
        self.shard_rows = rows_per_shard(num_images, feature_shape)

    def open(self, settings: dict, overwrite: bool):
        """
        Makes the folder, or opens one of the same settings to go on.

        Raises:
            ValueError: if it has features of other settings (and `overwrite` is not given), or anything else.
        """
        self.settings = json.loads(json.dumps(settings))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another output folder")
        if self.path.is_dir() and any(not _is_partial(file) for file in self.path.iterdir()):
            manifest = read_manifest(self.path)
            if overwrite:
                for file in [self.path / MANIFEST, *self.path.glob("features-*.parquet*")]:
                    file.unlink()
            elif manifest["settings"] != self.settings:
                raise ValueError(
                    f"{self.path} has features of other settings, "
                    f"{_difference(manifest['settings'], self.settings)}: choose another folder, or --overwrite them"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_manifest(complete=False)

    def missing_shards(self) -> list[int]:
        """The shards that are not there yet, in order."""
        shards = range(-(-self.num_images // self.shard_rows))
        return [shard for shard in shards if not self._shard_path(shard).exists()]

    def images_of(self, shard: int) -> range:
        """Positions of the images that a shard covers."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_images))

    def write(self, shard: int, columns: dict[str, list[str]], features: "np.ndarray", remarks: dict):
        """
        Writes a shard.

        Args:
            columns: path, and label where there are labels; one entry a row.
            features: (rows, *feature_shape), float32.
            remarks: `skipped` and `notes`, each path -> reason.
        """
        pa, pq = require("pyarrow"), require("pyarrow.parquet")
        size = math.prod(self.feature_shape)
        values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), size)
        table = pa.table(
            {**{name: pa.array(column, pa.string()) for name, column in columns.items()}, "feature": values}
        )
        table = table.replace_schema_metadata({"dino": json.dumps(remarks)})
        partial = self.path / f".{self._shard_path(shard).name}.partial"
        pq.write_table(table, partial, compression="none", use_dictionary=["label"])
        partial.replace(self._shard_path(shard))

    def count_rows(self, shards: list[int]) -> int:
        """Rows in the given shards."""
        pq = require("pyarrow.parquet")
        return sum(pq.read_metadata(self._shard_path(shard)).num_rows for shard in shards)

    def close(self) -> dict:
        """Completes the manifest from the shards, and returns it."""
        pq = require("pyarrow.parquet")
        rows, skipped, notes = 0, {}, {}
        for file in shard_files(self.path):
            metadata = pq.read_metadata(file)
            remarks = json.loads(metadata.metadata[b"dino"])
            rows += metadata.num_rows
            skipped.update(remarks["skipped"])
            notes.update(remarks["notes"])
        return self._write_manifest(complete=True, rows=rows, skipped=skipped, notes=notes)

    def _shard_path(self, shard: int) -> Path:
        return self.path / f"features-{shard:06d}.parquet"

    def _write_manifest(self, **state) -> dict:
        manifest = {
            "format": FORMAT,
            **state,
            "num_images": self.num_images,
            "feature_shape": list(self.feature_shape),
            "settings": self.settings,
        }
        partial = self.path / f".{MANIFEST}.partial"
        partial.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path / MANIFEST)
        return manifest


def _is_partial(file: Path) -> bool:
    """Whether it is what a run that was killed had not finished writing."""
    return file.name.startswith(".") and file.name.endswith(".partial")


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(Path(folder).glob("features-*.parquet"))


def read_manifest(folder: str | os.PathLike) -> dict:
    """
    What the features in a folder are.

    Raises:
        ValueError: if it is not a folder of features.
    """
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT:
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{folder} holds something other than features of `dino extract`: choose another folder")


def load_features(folder: str | os.PathLike) -> "dict[str, np.ndarray]":
    """
    The features that `dino extract` wrote, in the order of the images.

    Returns:
        `feature`: (rows, *feature_shape), float32; `path`: (rows,); `label`: (rows,), where the images have classes.

    Raises:
        ValueError: if it is not a folder of features, or a run has not finished.
    """
    np, pq = require("numpy"), require("pyarrow.parquet")
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise ValueError(f"{folder} is not complete: run the same `dino extract` again, and it goes on")
    arrays = {"feature": np.empty((manifest["rows"], *manifest["feature_shape"]), np.float32)}
    columns: dict[str, list] = {}
    start = 0
    for file in shard_files(folder):
        table = pq.read_table(file)
        rows = arrays["feature"][start : start + len(table)]
        rows[:] = table["feature"].combine_chunks().flatten().to_numpy().reshape(rows.shape)
        start += len(table)
        for name in table.column_names[:-1]:
            columns.setdefault(name, []).append(table[name].to_numpy())
    return {**{name: np.concatenate(parts) for name, parts in columns.items()}, **arrays}


def _difference(old: dict, new: dict) -> str:
    """The first setting that differs, as `name: old -> new`."""
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                return f"{name}.{_difference(old[name], new[name])}"
            return f"{name}: {old.get(name)} -> {new.get(name)}"
    return ""


__all__ = ["FeatureFolder", "load_features", "read_manifest", "rows_per_shard", "shard_files"]
