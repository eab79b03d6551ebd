# SPDX-License-Identifier: Apache-2.0
"""What evaluations start from: features of images with their labels, extracted before or on the spot."""

import json
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..extraction.extract import extract_features
from ..extraction.feature_files import MANIFEST, FeatureFolder, load_features
from ..extraction.options import ExtractOptions
from ..hub.loading import DTYPES, load_model, model_fingerprint
from ..runtime.extras import require
from ..runtime.processes import processes


if TYPE_CHECKING:
    import numpy as np

Label = str | int
# what two sets of features must agree on to be compared, as the manifest calls it
SHARED = ("last_blocks", "dtype", "model_fingerprint", "transform", "gem_p", "scales")


@dataclass(frozen=True)
class EvaluationFeatures:
    """
    Features of images, and what they are.

    Args:
        source: what the user named.
        features: (N, D), float32, on the CPU.
        labels: of each image, None where it has none; None if no image has one.
        names: of each image, its path, or index, or `shard/index`.
        kind: of [`image_features`].
        settings: of the extraction, from its manifest: `last_blocks`, `dtype`, `model`, `model_fingerprint`, …
        skipped: images that could not be read, and why.
    """

    source: str
    features: torch.Tensor
    labels: list[Label | None] | None
    names: list[str | int]
    kind: str
    settings: dict
    skipped: dict[str, str]

    def __post_init__(self):
        if self.features.ndim != 2:
            raise ValueError(f"{self.source} has {self.kind} features, several vectors an image: extract another kind")
        finite = torch.isfinite(self.features).all(dim=1)
        if not finite.all():
            name = self.names[int((~finite).nonzero()[0])]
            raise ValueError(f"the feature of {name} in {self.source} is not finite: is the model damaged?")

    @property
    def last_blocks(self) -> int:
        """Of how many last blocks each feature is made."""
        return self.settings["last_blocks"]

    @property
    def model_fingerprint(self) -> str:
        """A hash of the weights that the features are of."""
        return self.settings["model_fingerprint"]

    def labelled(self) -> "EvaluationFeatures":
        """
        The images that have a label.

        Raises:
            ValueError: if none has one.
        """
        if self.labels is None:
            raise ValueError(
                f"the images of {self.source} have no labels: put those of each class into a folder of its own"
            )
        rows = [i for i, label in enumerate(self.labels) if label is not None]
        return self if len(rows) == len(self.labels) else self.subset(rows)

    def subset(self, rows: Sequence[int]) -> "EvaluationFeatures":
        """Some of the images."""
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        names = [self.names[i] for i in rows]
        return replace(self, features=self.features[rows], labels=labels, names=names)


def features_of(
    source: str,
    model: str | None = None,
    *,
    features: str | None = None,
    last_blocks: int | None = None,
    batch_size: int = 32,
    dtype: str = "float32",
    num_workers: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: bool = True,
    **further,
) -> EvaluationFeatures:
    """
    The features of a folder that `dino extract` wrote, or of images, extracted into a temporary folder.

    Under `accelerate launch` or torchrun all processes extract together, and get the same; the temporary folder
    (`TMPDIR`) must be one that all of them see.

    Args:
        source: a folder of features, or images: see [`open_source`].
        model: folder or hub id; not needed with features, but if given, they must be of it.
        features: a kind of [`image_features`]; by default the only one in the folder, or `"cls"`.
        last_blocks: see [`image_features`]; by default that of the folder, or 1.
        batch_size, dtype, num_workers, image_column, label_column: see [`ExtractionSettings`].
        further: others of [`ExtractionSettings`], which those of a folder of features must have.

    Raises:
        ValueError: if an argument cannot work, the features are not such, or one is not finite.
        OSError: if the model is missing or damaged.
    """
    if is_feature_folder(source):
        return _load(source, source, model, features, last_blocks, further)
    if model is None:
        raise ValueError(f"{source} has images, not features of `dino extract`: name a model with --model")
    with _shared_temporary_folder() as folder:
        extract_features(
            ExtractOptions(
                model=model,
                images=source,
                output=folder,
                features=features or "cls",
                last_blocks=1 if last_blocks is None else last_blocks,
                batch_size=batch_size,
                dtype=dtype,
                num_workers=num_workers,
                image_column=image_column,
                label_column=label_column,
                progress=progress,
                **further,
            )
        )
        processes().wait_for_everyone()  # for the manifest, which the main process writes last
        return _load(source, folder, None, features or "cls", last_blocks, {})


def is_feature_folder(source: str) -> bool:
    """Whether it is a folder that `dino extract` wrote, and not a source of images."""
    return (Path(source) / MANIFEST).is_file()


@contextmanager
def _shared_temporary_folder() -> Iterator[str]:
    """One folder for all processes, removed when the last of them is done."""
    state = processes()
    with tempfile.TemporaryDirectory(prefix="dino-") as own:
        (shared,) = require("accelerate.utils").broadcast_object_list([own])
        yield shared
        state.wait_for_everyone()


def _load(
    source: str, folder: str, model: str | None, features: str | None, last_blocks: int | None, further: dict
) -> EvaluationFeatures:
    manifest = FeatureFolder.read(folder)
    settings = manifest["settings"]
    if model is not None:
        of_model = model_fingerprint(load_model(model, DTYPES[settings["dtype"]]))
        if of_model != settings["model_fingerprint"]:
            raise ValueError(f"the features in {source} are not of {model}, or of other weights: extract them again")
    if last_blocks not in (None, settings["last_blocks"]):
        raise ValueError(f"{source} has features of the last {settings['last_blocks']} blocks, not of {last_blocks}")
    for name, wanted in json.loads(json.dumps(further)).items():
        if settings.get(name) != wanted:
            raise ValueError(f"{source} has features of {name} {settings.get(name)}, not {wanted}: extract them again")
    kinds = [kind.strip() for kind in settings["features"].split(",")]
    if features is None and len(kinds) > 1:
        raise ValueError(f"{source} has several kinds of features, {', '.join(kinds)}: name one with --features")
    kind = features or kinds[0]
    if kind not in kinds:
        raise ValueError(f"{source} has {', '.join(kinds)} features, not {kind}: extract these, or name another kind")
    table = load_features(folder)
    array = table["feature" if len(kinds) == 1 else f"feature_{kind}"]
    return EvaluationFeatures(
        source,
        torch.from_numpy(array.copy()),  # of a single shard it lies in a file that may be removed
        _labels(table.get("label")),
        _names(table),
        kind,
        settings,
        manifest["skipped"],
    )


def _names(table: "dict[str, np.ndarray]") -> list[str | int]:
    if "shard" in table:  # of streamed data sets, which count anew in each
        return [f"{shard}/{index}" for shard, index in zip(table["shard"].tolist(), table["index"].tolist())]
    return table.get("path", table.get("index")).tolist()


def _labels(column) -> list[Label | None] | None:
    """Labels as they were before: numbers among which some are missing come back as floats, with NaN for these."""
    if column is None:
        return None
    values = [None if value is None or value != value else value for value in column.tolist()]
    values = [int(value) if isinstance(value, float) else value for value in values]
    return values if any(value is not None for value in values) else None


def check_pair(train: EvaluationFeatures, test: EvaluationFeatures):
    """
    Raises:
        ValueError: if one or the other are features of another kind, model or transform, or there are none.
    """
    for part in (train, test):
        if not len(part.features):
            raise ValueError(f"{part.source} has no images")
    facts = {"features": (train.kind, test.kind), "width": (train.features.shape[1], test.features.shape[1])}
    facts |= {name: (train.settings.get(name), test.settings.get(name)) for name in SHARED}
    for name, (one, other) in facts.items():
        if one != other:
            differ = "" if name in ("model_fingerprint", "transform") else f", {one} and {other}"
            name = {"model_fingerprint": "weights"}.get(name, name)
            raise ValueError(
                f"features of {train.source} and {test.source} cannot be compared: they differ in {name}{differ}"
            )


def labelled_pair(
    train: EvaluationFeatures, test: EvaluationFeatures
) -> tuple[EvaluationFeatures, EvaluationFeatures]:
    """
    The images of both that have a label.

    Raises:
        ValueError: if they cannot be compared, one side has no labels, the training images have a single class, or
            no class of the test images is among theirs.
    """
    check_pair(train, test)
    train, test = train.labelled(), test.labelled()
    classes = set(train.labels)
    if len(classes) == 1:
        raise ValueError(f"all images of {train.source} have the label {train.labels[0]!r}: two classes are needed")
    if classes.isdisjoint(test.labels):
        raise ValueError(
            f"no label of {test.source}, such as {test.labels[0]!r}, is among those of {train.source}, such as "
            f"{train.labels[0]!r}"
        )
    return train, test


def number_labels(*parts: Sequence[Hashable]) -> tuple[list, list[torch.Tensor]]:
    """
    The classes of several lists of labels, sorted, and each list as the numbers of its labels, (N,).
    """
    labels = set().union(*parts)
    same_type = len({type(label) for label in labels}) == 1
    classes = sorted(labels, key=None if same_type else str)
    numbers = {label: number for number, label in enumerate(classes)}
    return classes, [torch.tensor([numbers[label] for label in part], dtype=torch.long) for part in parts]


__all__ = ["EvaluationFeatures", "check_pair", "features_of", "is_feature_folder", "labelled_pair", "number_labels"]
