# SPDX-License-Identifier: Apache-2.0
"""What evaluations start from and end with: features of images with their labels, and a summary that prints itself."""

import json
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ..data.image_source import ImageSource, remarks_on_images
from ..data.sources import open_source
from ..extraction.extract import extract_features
from ..extraction.feature_files import MANIFEST, open_features
from ..extraction.feature_models import fingerprint_of
from ..extraction.features import feature_columns
from ..extraction.options import ExtractOptions
from ..runtime.extras import require
from ..runtime.finite import check_finite
from ..runtime.processes import processes, wait_for_everyone
from .options import DEFAULT_FEATURES, FeatureOptions


Label = str | int
Found = TypeVar("Found")
# settings in which two sets of features must agree to be compared
SHARED = ("last_blocks", "dtype", "model_fingerprint", "transform", "gem_p", "scales")
# settings that a folder of features must have where they are asked for
CHECKED = ("last_blocks", "gem_p", "scales", "resize", "image_size")


@dataclass(frozen=True)
class EvaluationFeatures:
    """
    Features of images, with their labels and names.

    Args:
        source: the images or the folder of features that the user named.
        features: (N, D), float32, on the CPU.
        labels: one for each image, None for an image without a label; None if no image has one.
        names: one for each image, its path, its index, or `shard/index`.
        kind: one of the kinds of [`image_features`].
        settings: settings of the extraction, from its manifest: `last_blocks`, `dtype`, `model_fingerprint`, …
        skipped: images that could not be read, with the reasons.

    Raises:
        ValueError: if there are several vectors an image, or one is not finite, or longer than float32 can tell.
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
        lengths = torch.linalg.vector_norm(self.features, dim=1)  # by which they are divided
        check_finite(lengths, f"in {self.source} the feature of", self.names, self.settings.get("dtype", "float32"))

    @property
    def last_blocks(self) -> int:
        """The number of last blocks whose features are side by side."""
        return self.settings["last_blocks"]

    def labelled(self) -> "EvaluationFeatures":
        """Returns the images that have a label. Raises ValueError if no image has one."""
        if self.labels is None:
            raise ValueError(no_labels(self.source, how_to_label(self.settings)))
        rows = [i for i, label in enumerate(self.labels) if label is not None]
        return self if len(rows) == len(self.labels) else self.subset(rows)

    def subset(self, rows: Sequence[int]) -> "EvaluationFeatures":
        """Returns the images of some rows."""
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        names = [self.names[i] for i in rows]
        return replace(self, features=self.features[rows], labels=labels, names=names)


@dataclass(frozen=True)
class EvaluationSummary(Generic[Found]):
    """Holds what an evaluation found: the object with the numbers, the text to print, and remarks on the images."""

    found: Found
    text: str
    remarks: list[str]

    def __str__(self) -> str:
        return self.text


def features_of(
    source: str, model: str | None = None, options: FeatureOptions = DEFAULT_FEATURES
) -> EvaluationFeatures:
    """
    Loads the features of a folder of `dino extract`, or extracts those of images into a temporary folder.

    Under `accelerate launch` or torchrun all processes extract together, and get the same features; the temporary
    folder (`TMPDIR`) must be one that all of them see.

    Args:
        source: a folder of features, or images: see [`open_source`].
        model: folder or hub id; where features are given with it, they must be features of this model.

    Raises:
        ValueError: if an option cannot work, the features are others, or a feature is not finite.
        OSError: if the model is missing or damaged.
    """
    if is_feature_folder(source):
        return _load(source, source, model, options)
    if model is None:
        raise ValueError(f"{source} has images, not features of `dino extract`: name a model with --model")
    values = {field.name: getattr(options, field.name) for field in fields(FeatureOptions)}
    given = {name: value for name, value in values.items() if value is not None}
    with _shared_temporary_folder() as folder:
        extract_features(ExtractOptions(model=model, images=source, output=folder, **given))
        wait_for_everyone()  # for the manifest, which the main process writes last
        return _load(source, folder, None, options)


def how_to_label(settings: dict) -> str:
    """Returns what a user can do whose images have no labels, by the settings of their extraction."""
    names = ("streaming", "image_column", "label_column", "image_root")
    try:
        return open_source(settings["images"], **{name: settings.get(name) for name in names}).how_to_label
    except (ValueError, OSError):  # the images are gone
        return ImageSource.how_to_label


def is_feature_folder(source: str) -> bool:
    """Returns whether a source is a folder that `dino extract` wrote, and not one of images."""
    return (Path(source) / MANIFEST).is_file()


@contextmanager
def _shared_temporary_folder() -> Iterator[str]:
    """Makes one folder for all processes, and removes it when the last of them is done."""
    processes()  # which have to find each other first
    with tempfile.TemporaryDirectory(prefix="dino-") as own:
        (shared,) = require("accelerate.utils").broadcast_object_list([own])
        yield shared
        wait_for_everyone()


def _load(source: str, folder: str, model: str | None, options: FeatureOptions) -> EvaluationFeatures:
    """Loads a folder of features, and checks that they are what the options ask for."""
    stored = open_features(folder)
    settings = stored.settings
    if model is not None and fingerprint_of(model, settings) != settings["model_fingerprint"]:
        raise ValueError(f"the features in {source} are not of {model}, or of other weights: extract them again")
    for name in CHECKED:
        wanted = json.loads(json.dumps(getattr(options, name)))  # with lists for tuples, as in the manifest
        if wanted not in (None, settings.get(name)):
            raise ValueError(
                f"{source} has features of {name}={settings.get(name)}, not of {name}={wanted}: extract them again"
            )
    columns = {kind: column for column, kind in feature_columns(settings["features"]).items()}
    kinds = list(columns)
    if options.features is None and len(kinds) > 1:
        raise ValueError(f"{source} has several kinds of features, {', '.join(kinds)}: name one with --features")
    kind = options.features or kinds[0]
    if kind not in kinds:
        raise ValueError(f"{source} has {', '.join(kinds)} features, not {kind}: extract these, or name another kind")
    table = stored.load()
    array = table[columns[kind]]
    if "shard" in table:  # streamed data sets count anew in each shard
        names = [f"{shard}/{index}" for shard, index in zip(table["shard"].tolist(), table["index"].tolist())]
    else:
        names = table.get("path", table.get("index")).tolist()
    features = torch.from_numpy(array.copy())  # the array of a single shard lies in a file that may be removed
    return EvaluationFeatures(source, features, _labels(table), names, kind, settings, stored.skipped)


def _labels(table: dict) -> list[Label | None] | None:
    """Returns the labels as they were in the source: Arrow gives numbers with missing ones as floats with NaN."""
    if "label" not in table:
        return None
    values = [None if value is None or value != value else value for value in table["label"].tolist()]
    values = [int(value) if isinstance(value, float) else value for value in values]
    return values if any(value is not None for value in values) else None


def check_pair(train: EvaluationFeatures, test: EvaluationFeatures):
    """Raises ValueError if the features differ in kind, model or transform, or one side has no images."""
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


def no_labels(source: str, how: str = ImageSource.how_to_label) -> str:
    """Returns what is said where labels are needed, and no image has one; `how` says what a user can do."""
    return f"the images of {source} have no labels: {how}"


def one_class(source: str, label: Label) -> str:
    """Returns what is said where several classes are needed, and all images have the same label."""
    return f"all images of {source} have the label {label!r}: two classes are needed"


def check_labels(train_source: str, train: Sequence[Label | None], test_source: str, test: Sequence[Label | None]):
    """
    Checks the labels of images that a classifier learns from, and of those that it is tested on.

    Args:
        train, test: labels, None for an image without one; sources name them in messages.

    Raises:
        ValueError: if a side has no labels, the training images have a single class, or no class of the test images is
            among the training classes.
    """
    sides = ((train_source, train), (test_source, test))
    (classes, tested) = ([label for label in labels if label is not None] for _, labels in sides)
    for (source, _), labels in zip(sides, (classes, tested)):
        if not labels:
            raise ValueError(no_labels(source))
    if len(set(classes)) == 1:
        raise ValueError(one_class(train_source, classes[0]))
    if set(classes).isdisjoint(tested):
        raise ValueError(
            f"no label of {test_source}, such as {tested[0]!r}, is among those of {train_source}, such as "
            f"{classes[0]!r}"
        )


def unknown_classes(count: int) -> list[str]:
    """Returns the line about test images whose class no training image has, if there are any."""
    return [f"{count} of them have a class that no training image has, and count as wrong"] if count else []


def labelled_pair(
    train: EvaluationFeatures, test: EvaluationFeatures
) -> tuple[EvaluationFeatures, EvaluationFeatures]:
    """
    Returns the images of both sides that have a label. Raises ValueError if the sides cannot be compared, or as
    [`check_labels`] does.
    """
    check_pair(train, test)
    train, test = train.labelled(), test.labelled()
    check_labels(train.source, train.labels, test.source, test.labels)
    return train, test


def number_labels(*parts: Sequence[Hashable]) -> tuple[list, list[torch.Tensor]]:
    """Returns the sorted classes of several lists of labels, and each list as the numbers of its labels, (N,)."""
    labels = set().union(*parts)
    same_type = len({type(label) for label in labels}) == 1
    classes = sorted(labels, key=None if same_type else str)
    numbers = {label: number for number, label in enumerate(classes)}
    return classes, [torch.tensor([numbers[label] for label in part], dtype=torch.long) for part in parts]


def remarks_on(*parts: EvaluationFeatures) -> list[str]:
    """Returns lines that name the images which could not be read, and count those which have no label."""
    lines = []
    for part in {part.source: part for part in parts}.values():
        missing = (part.labels or []).count(None)
        note = {part.source: f"{missing} images have no label, and are left out"} if missing else {}
        lines += remarks_on_images(part.skipped, note)
    return lines


def accuracy_result(dataset: str, name: str, percent: float, **arguments: Any) -> dict[str, Any]:
    """Returns an accuracy as [`record_evaluation_results`] takes it."""
    result = {"task": "image-classification", "dataset": dataset, "metric": "accuracy", "metric_name": name}
    return {**result, "value": round(percent, 4), **arguments}
