# SPDX-License-Identifier: Apache-2.0
"""The manifest of a folder of features: the types of its values, and what must fit together."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ..hub.loading import DTYPES
from ..runtime.json_files import check_types
from ..runtime.run_folder import RunFacts
from .features import feature_columns, is_known
from .shards import Shard, damaged


class ShardFacts(TypedDict):
    """Declares what the manifest says about a shard; see [`Shard`]."""

    rows: int
    fingerprint: str


class Manifest(RunFacts):
    """Declares what the manifest has at any time; that of an older version does not list the shards."""

    features: dict[str, list[int]]
    rows: NotRequired[int]
    shards: NotRequired[dict[str, dict]]
    skipped: NotRequired[dict[str, str]]
    notes: NotRequired[dict[str, str]]


class CompleteManifest(Manifest):
    """Declares what the manifest has when all features are there."""

    rows: int
    skipped: dict[str, str]
    notes: dict[str, str]


class ManifestSettings(TypedDict):
    """The settings that readers of features use."""

    model: str
    model_revision: str | None
    model_fingerprint: str
    images: str
    images_fingerprint: str
    image_column: str | None
    label_column: str | None
    streaming: bool
    features: str
    last_blocks: int
    dtype: str
    device: str
    transform: dict[str, Any]
    versions: dict[str, str]
    engine: NotRequired[str]
    prepared: NotRequired[str]
    random_weights: NotRequired[bool]
    gem_p: NotRequired[float | int]
    scales: NotRequired[list[float | int]]
    resize: NotRequired[str]
    image_size: NotRequired[int | None]


def check_settings(settings: dict[str, Any], shapes: dict[str, list[int]], name: Path):
    """Raises ValueError if a setting that readers use is missing or impossible, or does not fit the features."""
    check_types(settings, ManifestSettings, name)
    columns = feature_columns(settings["features"])
    checks = {
        "features": columns.keys() == shapes.keys() and all(map(is_known, columns.values())),
        "dtype": settings["dtype"] in DTYPES,
        "last_blocks": settings["last_blocks"] > 0,
    }
    for setting, is_right in checks.items():
        if not is_right:
            raise ValueError(f"{name} is damaged: {setting}={settings[setting]!r} does not fit the features")
    for column, shape in shapes.items():
        if not shape or min(shape) < 1:
            raise ValueError(f"{name} is damaged: {column} has the shape {shape}")


def check_listed(manifest: dict[str, Any], shards: Iterable[Shard], name: Path):
    """Raises ValueError if a shard is not the one that the manifest lists; an older manifest lists none."""
    if "shards" not in manifest:
        return
    for facts in manifest["shards"].values():
        check_types(facts, ShardFacts, name)
    for shard in shards:
        listed = manifest["shards"].get(shard.file.name)
        if listed != {"rows": shard.rows, "fingerprint": shard.fingerprint}:
            raise damaged(shard.file, "it is not in the manifest" if listed is None else "it was written otherwise")
