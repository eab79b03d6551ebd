# SPDX-License-Identifier: Apache-2.0
"""Options of an extraction: which features, of which model and images, and how they are computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..data.decoding import check_on_error
from ..data.image_source import ImageSource
from ..data.options import IMAGES_HELP, ON_ERROR_HELP, ReaderOptions, TableOptions
from ..data.sources import open_source
from ..export.engines import GRAPH_ENGINES
from ..hub.loading import DTYPES, MODEL_HELP
from ..runtime.options import StrPath, option
from .features import GEM_P, feature_columns


ENGINES = ("torch", *GRAPH_ENGINES)
CPU_BATCH = 8  # images at once: more do not fit the cache, and malloc asks the system for each tensor above 32 MiB


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings(TableOptions):
    """
    Everything that features depend on.

    Raises:
        ValueError: if a value cannot work.
    """

    model: StrPath = option(MODEL_HELP)
    images: StrPath = option(IMAGES_HELP)
    features: str = option(
        "cls, patch_mean, cls_patch_mean, gem, cls_gem, patches or projection; keys@9, queries@9, values@9 or "
        "tokens@9 of the patches in block 9, counted from 0, or negative from the end; several with commas.",
        "cls",
    )
    last_blocks: int = option("Number of last blocks whose features are put side by side.", 1)
    batch_size: int = option("Images in one forward pass; on a CPU at most 8.", 32)
    dtype: str = option("float32, bfloat16 or float16, of weights and arithmetic.", "float32")
    engine: str = option(
        "torch; or onnxruntime or openvino, which are faster on many CPUs: `dino bench --engines` measures it.",
        "torch",
    )
    streaming: bool = option("Read a data set of the hub without storing it.", False)
    gem_p: float = option("Exponent of generalised means.", GEM_P)
    scales: Sequence[float] = option("Sizes of the image to take the mean over, e.g. 1,0.7071,0.5.", (1.0,))
    resize: str = option(
        "crop: from the middle, as saved with the model; square: squashed; longest: not cropped, by the longer side; "
        "none: in the images' own sizes.",
        "crop",
    )
    image_size: int | None = option("Pixels a side, if not the model's; with longest those of the longer side.", None)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: allowed are {', '.join(DTYPES)}")
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}: allowed are {', '.join(ENGINES)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def columns(self) -> dict[str, str]:
        """The columns of features, and the kind in each."""
        return feature_columns(self.features)

    @property
    def pooling(self) -> tuple[int, float, tuple[float, ...]]:
        """The arguments of `image_features` after the kinds of features."""
        return self.last_blocks, self.gem_p, self.scales

    def batch_size_on(self, device: torch.device) -> int:
        """Returns how many images go through the model at once on a device."""
        return min(self.batch_size, CPU_BATCH) if device.type == "cpu" else self.batch_size

    def open_source(self) -> ImageSource:
        """Opens the source of the images."""
        return open_source(self.images, streaming=self.streaming, **self.of_tables)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(ReaderOptions, ExtractionSettings):
    """
    An extraction: what the features depend on, and how it is run.

    On a CPU other engines gain more than `torch.compile`; and torch 2.11 without a GPU cannot train in a process that
    has compiled.
    """

    summary: ClassVar[str] = (
        "Computes features of images, as Parquet shards and a manifest; run again, it goes on where it stopped."
    )

    output: StrPath = option("Folder to write to; with features of the same settings the extraction goes on.")
    compile: bool = option("Run the model through torch.compile; on a CPU it gains nothing.", False)
    on_error: str = option(ON_ERROR_HELP, "skip")
    overwrite: bool = option("Start anew where the folder has features.", False)

    def __post_init__(self):
        super().__post_init__()
        check_on_error(self.on_error)
