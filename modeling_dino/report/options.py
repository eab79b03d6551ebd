# SPDX-License-Identifier: Apache-2.0
"""The options of `dino report`."""

from dataclasses import dataclass
from typing import ClassVar

from ..data.options import ReaderOptions
from ..runtime.options import StrPath, option
from .feature_map import NEIGHBOURS
from .thumbnails import MAX_IMAGES


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ReaderOptions):
    """
    Says which features the page is about, and how they are judged.

    Raises:
        ValueError: if a value cannot work.
    """

    summary: ClassVar[str] = (
        "Writes one HTML page: a map of the images, neighbours, near-duplicates, outliers, and what k-NN predicts."
    )

    folder: StrPath = option("Folder of features, written by `dino extract`.", flag="FEATURES", argument=True)
    output: StrPath | None = option("HTML file to write; by default report.html in the folder of features.", None)
    features: str | None = option("Kind of features, where there are several.", None)
    images: StrPath | None = option("Where the images are now, if they have moved since the extraction.", None)
    # "usually working the best": https://github.com/facebookresearch/dino/blob/7c446df/eval_knn.py#L214
    k: int = option("Number of neighbours that are shown, and that vote.", 20)
    num_clusters: int | None = option(
        "Number of clusters of k-means; by default sqrt(images / 2), at most 20.", None, flag="--clusters"
    )
    duplicates: float | None = option(
        "Least cosine similarity of near-duplicates; by default a limit that follows the features.", None
    )
    max_images: int = option("Size of the random sample that is shown if there are more images.", 20_000)

    def __post_init__(self):
        if not 1 <= self.k <= NEIGHBOURS:
            raise ValueError(f"k={self.k} must be between 1 and {NEIGHBOURS}")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise ValueError(f"clusters={self.num_clusters} must be at least 1")
        if self.duplicates is not None and not -1 <= self.duplicates <= 1:
            raise ValueError(f"duplicates={self.duplicates} is a cosine, and must be between -1 and 1")
        if not 1 <= self.max_images <= MAX_IMAGES:
            raise ValueError(f"max_images={self.max_images} must be between 1 and {MAX_IMAGES} for a browser's sake")
