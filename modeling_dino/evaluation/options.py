# SPDX-License-Identifier: Apache-2.0
"""The options of evaluations: which images are compared, how their features are computed, where results go."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ..data.options import ReaderOptions, TableOptions
from ..extraction.options import ExtractOptions
from ..hub.loading import MODEL_HELP
from ..pictures.options import PictureOptions
from ..runtime.options import StrPath, option
from .knn import TEMPERATURE


FEATURES_HELP = (
    "Kind of features of `dino extract` with one vector an image; by default cls, or the only kind in a folder."
)
_HELP = {field.name: field.metadata.get("help") for field in fields(ExtractOptions)}


def _option_of_extract(name: str, python_only: bool = False) -> Any:
    """Makes an option of `dino extract` one whose default is left to it, or to a folder of features."""
    return option(f"{_HELP[name].removesuffix('.')}; by default as in `dino extract`.", None, python_only=python_only)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ReaderOptions, TableOptions):
    """
    How the features of images are computed, as in `ExtractOptions`.

    What is None is as `dino extract` has it. Of features that were extracted before, what is not None must be so; the
    batch size, the dtype and the reading of images do not matter then.
    """

    batch_size: int = option(_HELP["batch_size"], 32)
    features: str | None = option(FEATURES_HELP, None, python_only=True)
    last_blocks: int | None = _option_of_extract("last_blocks", python_only=True)
    dtype: str = option(_HELP["dtype"], "float32", python_only=True)
    engine: str = option(_HELP["engine"], "torch")
    gem_p: float | None = _option_of_extract("gem_p", python_only=True)
    scales: Sequence[float] | None = _option_of_extract("scales", python_only=True)
    resize: str | None = _option_of_extract("resize", python_only=True)
    image_size: int | None = _option_of_extract("image_size", python_only=True)


DEFAULT_FEATURES = FeatureOptions()


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """
    Says whether results are recorded beside the model.

    Raises:
        ValueError: if they should be, and the model is in no folder here.
    """

    record: bool = option(
        "Record the results in the folder of the model, from where `dino push` puts them on its model card.", False
    )

    def __post_init__(self):
        if self.record and (self.model is None or not Path(self.model).is_dir()):
            raise ValueError("--record needs the folder of a model: name it with --model, or save the model into one")

    @property
    def record_folder(self) -> StrPath | None:
        """The folder in which results are recorded."""
        return self.model if self.record else None


@dataclass(frozen=True, kw_only=True)
class ResultOptions(RecordOptions):
    """Says which model is evaluated, and where the results are written."""

    model: StrPath | None = option(
        "Folder or hub id of a saved model; not needed where all sources are features.", None
    )
    dataset: str | None = option("Name of the data set in the results; by default what --test or --index names.", None)
    json_file: StrPath | None = option("File to write the results to.", None, flag="--json")


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(ResultOptions, FeatureOptions):
    """Names the images that a classifier learns from, and those that it is tested on."""

    train: StrPath = option(
        "Labelled images to learn from, or their features: a source or a folder of `dino extract`."
    )
    test: StrPath = option("Labelled images to be classified, or their features.")


@dataclass(frozen=True, kw_only=True)
class KnnOptions(ClassificationOptions):
    """A classification by k nearest neighbours."""

    summary: ClassVar[str] = "Classifies images by the votes of their nearest neighbours."

    k: Sequence[int] | None = option(
        "Numbers of neighbours that vote, with commas between them; by default those of 10,20,100,200 that there are "
        "enough images for.",
        None,
    )
    temperature: float = option("Temperature of the votes: each weighs exp(cosine / temperature).", TEMPERATURE)
    per_class: bool = option("List the accuracy of each class, too.", False)
    features: str | None = option(FEATURES_HELP, None)
    last_blocks: int | None = _option_of_extract("last_blocks")
    dtype: str = option(_HELP["dtype"], "float32")


@dataclass(frozen=True, kw_only=True)
class LinearOptions(ClassificationOptions):
    """A search for the best linear classifier; where `features` is None, it is also one for the best features."""

    summary: ClassVar[str] = (
        "Trains linear classifiers of a model's features, tests the best, and saves the model with it."
    )

    model: StrPath = option(MODEL_HELP)
    output: StrPath | None = option("Folder to save the model to, with its classifier.", None)
    epochs: int = option("Number of times that each training image is seen.", 100)
    classifier_batch_size: int = option("Images in one step of the classifiers' training.", 256)
    seed: int = option("Seed of the order of the images, and of the choice of those that are held out.", 0)
    features: str | None = option(
        "Kind of features, cls or cls_patch_mean; by default the better one, or the only kind in a folder.", None
    )
    last_blocks: int | None = option(
        "Number of last blocks whose features are put side by side; by default 4, and the last alone is tried, too.",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class RetrieveOptions(ResultOptions, FeatureOptions):
    """A search for the images of an index that are most like each query."""

    summary: ClassVar[str] = (
        "Finds the images most like each query; gives mean average precision where labels or a ground truth allow it."
    )

    index: StrPath = option("Images to search, or their features: a source or a folder of `dino extract`.")
    queries: StrPath | None = option(
        "Image, images or features to find neighbours of; by default each image of the index, among the others.", None
    )
    top: int | None = option("Number of neighbours of each query; by default 10, or as many as there are.", None)
    ground_truth: StrPath | None = option("JSON file that says which images each query should find.", None)
    whiten: StrPath | None = option("Images or features to learn PCA whitening from.", None)
    whiten_dim: int | None = option(
        "Number of whitened dimensions; without --whiten these are learned from the index.", None
    )
    search: str = option("faiss, exact, or auto: faiss where it is installed.", "auto")
    output: StrPath | None = option("A .csv or .parquet file to write all neighbours to.", None)
    sheet: StrPath | None = option("A .png file to draw a contact sheet into.", None)
    features: str | None = option(FEATURES_HELP, None)
    last_blocks: int | None = _option_of_extract("last_blocks")
    dtype: str = option(_HELP["dtype"], "float32")
    gem_p: float | None = _option_of_extract("gem_p")
    scales: Sequence[float] | None = _option_of_extract("scales")
    resize: str | None = _option_of_extract("resize")
    image_size: int | None = _option_of_extract("image_size")


@dataclass(frozen=True, kw_only=True)
class PropagationSettings:
    """
    From which patches a patch takes its label.

    Raises:
        ValueError: if a value cannot work.
    """

    num_last_frames: int = option("Frames before it, beside the first, that a frame takes its labels from.", 7)
    radius: int = option("How many patches an object may move; 0 for any number.", 12)
    top_k: int = option("From how many patches of all these frames a patch takes its label.", 5)
    temperature: float = option("Temperature of the affinity exp(cosine / temperature).", 0.1, python_only=True)

    def __post_init__(self):
        for name, least in (("num_last_frames", 0), ("radius", 0), ("top_k", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(RecordOptions, PropagationSettings, PictureOptions):
    """Says what is segmented, and what is written."""

    summary: ClassVar[str] = (
        "Carries the mask of a video's first frame through it by the similarity of patches, as the original on DAVIS."
    )

    video: StrPath = option("A video, or a folder of its frames.")
    mask: StrPath = option("Mask of the first frame: a palette PNG with the object's number at each pixel.")
    ground_truth: StrPath | None = option("Folder of masks of all frames, to score by.", None)
    overlay: bool = option("Also write a video of the masks over the frames, overlay.mp4.", False)
    fps: float | None = option("Frames a second of the overlay; by default the video's own, or 24.", None)

    def __post_init__(self):
        RecordOptions.__post_init__(self)
        PropagationSettings.__post_init__(self)
        PictureOptions.__post_init__(self)
