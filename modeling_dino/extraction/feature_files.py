# SPDX-License-Identifier: Apache-2.0
"""Writes and loads a folder of features: Parquet shards in the order of the images, and a manifest.

    manifest.json                     what the features depend on; whether all are there; which images were skipped;
                                      which shards there are, and the rows and the fingerprint of each
    features-000000-000000.parquet    rows: path or index, [label,] feature (fixed-size list of float32)

The images come in parts, and a part in chunks of so many rows: a shard is one chunk. Its metadata says which images it
skipped, and whether it is the last of its part, so that the shards that are there tell which are missing. Every file
appears whole, by a rename. Whoever reads a folder does it by [`open_features`], which checks manifest and shards
against each other.
"""

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.image_source import IMAGES_CHANGED
from ..runtime.extras import require
from ..runtime.json_files import check_types
from ..runtime.run_folder import RunFolder
from .manifest import CompleteManifest, Manifest, check_listed, check_settings
from .shards import SHARD_NAME, Shard, damaged, load_shard, read_shard, shard_place, write_shard


MANIFEST = "manifest.json"
FORMAT = "modeling-dino features 2"
SHARD_BYTES = 64 * 2**20
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 256, 16384
UNCOUNTED_SHARD_ROWS = 2048  # where the number of images is not known
SHARDS_TO_SHARE = 2048  # so many that of 64 processes none waits long for the last


def rows_per_shard(num_images: int | None, shapes: dict[str, tuple[int, ...]]) -> int:
    """Returns how many images a shard covers; it depends on the extraction alone, so that every run cuts the same."""
    shared = UNCOUNTED_SHARD_ROWS if num_images is None else -(-num_images // SHARDS_TO_SHARE)
    shared = min(-(-shared // MIN_SHARD_ROWS) * MIN_SHARD_ROWS, MAX_SHARD_ROWS)  # whole batches of a power of two
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
    schema = Manifest
    explanations = {"images_fingerprint": IMAGES_CHANGED}

    def __init__(self, path: str | os.PathLike, settings: dict, columns: dict[str, str], shapes: dict[str, tuple]):
        super().__init__(path, settings)
        self.columns, self.shapes = columns, shapes
        self.shards: dict[tuple[int, int], Shard] = {}  # by part and chunk: those that were found

    def has_results(self) -> bool:
        """Returns whether there is a shard."""
        return bool(shard_files(self.path))

    def check(self, overwrite: bool):
        """
        Checks what is in the folder as [`RunFolder`] does, and where the run would go on also the shards that are
        there. Raises ValueError if one is damaged, or not as the manifest says.
        """
        super().check(overwrite)
        if self.facts and not overwrite and self.facts["settings"] == self.settings:
            self.find_shards()
            check_listed(self.facts, self.shards.values(), self.path / MANIFEST)

    def clear(self):
        """Removes the shards of another run."""
        for file in shard_files(self.path):
            file.unlink()

    def write(self, **facts):
        """Writes the manifest."""
        super().write(features=self.shapes, **facts)

    def find_shards(self):
        """Reads which shards are there; raises ValueError if one is damaged."""
        shards = [read_shard(file, self.shapes) for file in shard_files(self.path)]
        self.shards = {shard.place: shard for shard in shards}

    @property
    def num_rows(self) -> int:
        """The number of rows in the shards that were found."""
        return sum(shard.rows for shard in self.shards.values())

    @property
    def remarks(self) -> dict[str, dict[str, str]]:
        """Returns what the shards that were found say of images: `skipped` and `notes`, each name -> text."""
        return {
            kind: {name: text for shard in self.shards.values() for name, text in shard.remarks[kind].items()}
            for kind in ("skipped", "notes")
        }

    def is_whole(self, part: int) -> bool:
        """Returns whether all shards of a part were found."""
        found = (self.shards.get((part, chunk)) for chunk in itertools.count())
        return next(shard is not None for shard in found if shard is None or shard.remarks["ends_part"])

    def write_shard(self, part: int, chunk: int, rows: list[dict], features: dict[str, np.ndarray], remarks: dict):
        """
        Writes a shard; raises OSError if it cannot be written, and leaves the other shards as they are.

        Args:
            rows: the columns beside the features.
            features: (rows, *shape) for each of `shapes`, float32.
            remarks: `skipped` and `notes`, each name of an image -> text, and `ends_part`.
        """
        file = self.path / f"features-{part:06d}-{chunk:06d}.parquet"
        write_shard(file, rows, self.columns, {name: features[name] for name in self.shapes}, remarks)

    def check_parts(self, num_parts: int):
        """Raises ValueError if a shard that was found is in none of so many parts, or behind the last of its part."""
        ends = {part: chunk for (part, chunk), shard in sorted(self.shards.items()) if shard.remarks["ends_part"]}
        for (part, chunk), shard in self.shards.items():
            if part >= num_parts or chunk > ends.get(part, chunk):
                raise damaged(shard.file, "it is none of this run")

    def find_all(self, num_parts: int):
        """Reads all shards of a run; raises OSError if one is missing."""
        self.find_shards()
        if not all(map(self.is_whole, range(num_parts))):
            raise OSError(f"{self.path} lacks shards that were written: run it again, and it goes on")

    def complete(self):
        """Completes the manifest from the shards that were found."""
        shards = {
            shard.file.name: {"rows": shard.rows, "fingerprint": shard.fingerprint} for shard in self.shards.values()
        }
        self.close(rows=self.num_rows, shards=shards, **self.remarks)


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """Lists the shards of a folder, in order."""
    return sorted((file for file in Path(folder).iterdir() if SHARD_NAME.fullmatch(file.name)), key=shard_place)


@dataclass(frozen=True)
class StoredFeatures:
    """
    A folder of features that are all there, whose manifest and shards have been checked against each other.

    Args:
        settings: see [`ManifestSettings`].
        shapes: columns of features, and the shape of an image's.
        skipped: images that could not be read, with the reasons.
    """

    folder: Path
    settings: dict[str, Any]
    shapes: dict[str, list[int]]
    rows: int
    skipped: dict[str, str]
    shards: list[Shard]

    def load(self) -> dict[str, np.ndarray]:
        """Loads what [`load_features`] returns; raises ValueError if a shard is damaged."""
        parts: dict[str, list] = {}
        arrays: dict[str, np.ndarray] = {}
        start = 0
        for shard in self.shards:
            for name, values in load_shard(shard, self.shapes).items():
                if name not in self.shapes:
                    parts.setdefault(name, []).append(values)
                elif shard.rows == self.rows:
                    arrays[name] = values
                elif shard.rows:
                    arrays.setdefault(name, np.empty((self.rows, *values.shape[1:]), np.float32))
                    arrays[name][start : start + shard.rows] = values
            start += shard.rows
        return {**{name: np.concatenate(columns) for name, columns in parts.items()}, **arrays}


def open_features(folder: str | os.PathLike) -> StoredFeatures:
    """
    Opens a folder of features, and checks that all are there, as they were written.

    Raises:
        ValueError: if it is not a folder of features, a run has not finished, or manifest or shards are damaged.
        OSError: if a file may not be read.
    """
    require("pyarrow")
    folder = Path(folder)
    manifest, name = FeatureFolder.read(folder), folder / MANIFEST
    if not manifest["complete"]:
        raise ValueError(f"{folder} is not complete: run the same `dino extract` again, and it goes on")
    check_types(manifest, CompleteManifest, name)
    check_settings(manifest["settings"], manifest["features"], name)
    shards = [read_shard(file, manifest["features"]) for file in shard_files(folder)]
    check_listed(manifest, shards, name)
    for shard in shards:
        if shard.columns != shards[0].columns:
            raise damaged(shard.file, f"it has other columns than {shards[0].file.name}")
    if lost := find_lost(shards, manifest):
        raise ValueError(f"{folder} lacks features ({lost}): run the same `dino extract` again, and it goes on")
    settings, shapes = manifest["settings"], manifest["features"]
    return StoredFeatures(folder, settings, shapes, manifest["rows"], manifest["skipped"], shards)


def find_lost(shards: list[Shard], manifest: dict[str, Any]) -> str | None:
    """Returns what shows that shards are missing, if anything."""
    missing = manifest.get("shards", {}).keys() - {shard.file.name for shard in shards}
    if missing:
        return f"{min(missing)} is missing"
    wanted = (0, 0)
    for shard in shards:
        if shard.place != wanted:
            return f"before {shard.file.name} a shard is missing"
        part, chunk = wanted
        wanted = (part + 1, 0) if shard.remarks["ends_part"] else (part, chunk + 1)
    rows = sum(shard.rows for shard in shards)
    if not shards or wanted[1] or rows != manifest["rows"]:
        return f"there are {rows} rows of {manifest['rows']}"
    return None


def load_features(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Loads the features that `dino extract` wrote, in the order of the images.

    Returns:
        `feature`: (rows, *shape), float32, or `feature_cls` and so on for several kinds; `path` or `index`: (rows,);
        `label`: (rows,), where the images have classes. The features of a single shard are not copied, and must not
        be written to; those of several are copied once.

    Raises:
        ValueError, OSError: see [`open_features`].
    """
    return open_features(folder).load()
