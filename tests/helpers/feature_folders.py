"""Folders of features as `dino extract` writes them, of features that are given."""

from pathlib import Path

import numpy as np

from modeling_dino.data.image_source import ImageRecord
from modeling_dino.data.reader import all_records
from modeling_dino.data.sources import open_source
from modeling_dino.extraction.feature_files import FeatureFolder


def records_of(source_name: str | Path) -> list[ImageRecord]:
    """The records of a source, in order."""
    return list(all_records(open_source(str(source_name))))


def write_features(
    folder: Path,
    source_name: str | Path,
    features: np.ndarray,
    rows: list[dict] | None = None,
    shard_rows: int | None = None,
):
    """
    Args:
        source_name: of the images.
        features: (N, ...), one for each image.
        rows: of the images, if other than the source gives them.
        shard_rows: in one shard; all by default.
    """
    source = open_source(str(source_name))
    rows = rows or [record.columns for record in records_of(source_name)]
    settings = {"model": "a model", "images": str(source_name), "features": "cls", "last_blocks": 1}
    settings |= {"dtype": "float32", "streaming": False, "image_column": None, "label_column": None}
    settings |= {"model_revision": None, "model_fingerprint": "abc", "images_fingerprint": source.fingerprint()}
    settings |= {"transform": {}, "device": "cpu", "versions": {"torch": "2"}}
    output = FeatureFolder(folder, settings, source.columns, {"feature": features.shape[1:]})
    output.open(overwrite=False)
    shard_rows = shard_rows or max(1, len(rows))
    for chunk, start in enumerate(range(0, max(1, len(rows)), shard_rows)):
        end = start + shard_rows
        remarks = {"skipped": {}, "notes": {}, "ends_part": end >= len(rows)}
        output.write_shard(0, chunk, rows[start:end], {"feature": features[start:end].astype("float32")}, remarks)
    output.find_all(1)
    output.complete()
