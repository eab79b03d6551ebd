# SPDX-License-Identifier: Apache-2.0
"""The options of `dino pretrain` and `dino finetune`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..data.decoding import check_on_error
from ..data.options import IMAGES_HELP, ON_ERROR_HELP, ReaderOptions, TableOptions
from ..hub.loading import MODEL_HELP
from ..runtime.options import StrPath, option


OVERWRITE_HELP = "Start anew where the folder has a run."


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(ReaderOptions, TableOptions):
    """
    A pretraining run.

    Raises:
        ValueError: if a value cannot work.
    """

    summary: ClassVar[str] = "Pretrains a model by a recipe; run again, it goes on where it stopped."

    recipe: StrPath = option("Name of a recipe, or a YAML file.", argument=True)
    overrides: Sequence[str] = option("Values to replace in the recipe.", (), flag="[KEY=VALUE]...", argument=True)
    data: StrPath = option(IMAGES_HELP)
    output: StrPath = option("Folder of the run.")
    from_model: StrPath | None = option(
        "Folder or hub id of a model to start from, with a head or without.", None, flag="--from"
    )
    eval_knn: list[StrPath] | None = option(
        "Labelled images, classified by k-NN; given twice: those that vote, those that are classified.", None
    )
    eval_every: int | None = option("Epochs between two evaluations; by default there are ten.", None)
    on_error: str = option(ON_ERROR_HELP, "skip")
    overwrite: bool = option(OVERWRITE_HELP, False)

    def __post_init__(self):
        check_on_error(self.on_error)
        if self.eval_every is not None and self.eval_every < 1:
            raise ValueError(f"eval_every={self.eval_every} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """
    How a classifier is fine-tuned.

    Raises:
        ValueError: if a value cannot work.
    """

    epochs: int = option("Times that each training image is seen.", 50)
    batch_size: int = option("Images in one step, over all processes.", 64)
    learning_rate: float = option(
        "Learning rate of the classifier after the warm-up; it falls along a cosine to 0.", 5e-4, flag="--lr"
    )
    layer_decay: float = option("Learning rate of a layer over that of the next.", 0.65)
    weight_decay: float = option("Weight decay of all but biases and other parameters of one dimension.", 0.05)
    warmup: float = option("Share of the steps in which the learning rate rises.", 0.1, python_only=True)
    drop_path_rate: float = option("Stochastic depth of a ViT.", 0.1, flag="--drop-path")
    crop_scale: float = option("Least share of an image in a random crop; 1 for whole images.", 0.35)
    flip_probability: float = option("Probability of a horizontal flip.", 0.5, flag="--flip")
    seed: int = option("Seed of the classifier's weights, the order of the images and their crops.", 0)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("layer_decay", "crop_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0 and at most 1")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be at least 0 and less than 1")
        for name in ("warmup", "flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(ReaderOptions, TableOptions, FinetuneSettings):
    """A fine-tuning: how the classifier is trained, and on what."""

    summary: ClassVar[str] = (
        "Trains a classifier and its backbone, and tests it; run again, it goes on where it stopped."
    )

    train: StrPath = option("Labelled images to train on. " + IMAGES_HELP)
    test: StrPath = option("Labelled images to test on, at the end.")
    model: StrPath = option(MODEL_HELP)
    output: StrPath = option("Folder of the run, and of the model at its end.")
    dataset: str | None = option("Name of the data set in results; --test if left out.", None)
    overwrite: bool = option(OVERWRITE_HELP, False)
