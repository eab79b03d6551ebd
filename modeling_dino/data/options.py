# SPDX-License-Identifier: Apache-2.0
"""Options that all commands which read images have in common."""

from dataclasses import dataclass

from ..runtime.options import option


IMAGES_HELP = (
    "Folder of images, tars or Parquet files; one of these; a text file with a path a line; or the id of a data set, "
    "user/name[/subset]. A split after a colon."
)
ON_ERROR_HELP = "What to do about an unreadable image: skip or fail."


@dataclass(frozen=True, kw_only=True)
class ImageColumnOptions:
    """Names the column of a table that has the images."""

    image_column: str | None = option("Column of images, where there are several.", None)


@dataclass(frozen=True, kw_only=True)
class TableOptions(ImageColumnOptions):
    """Names the columns of a table that are read."""

    label_column: str | None = option("Column of labels, if not `label`.", None)


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """How images are read, which results do not depend on."""

    num_workers: int | None = option(
        "Processes that read images; by default one a spare core, none for few images.", None, minimum=0
    )
    progress: bool = True
