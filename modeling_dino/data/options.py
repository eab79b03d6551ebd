# SPDX-License-Identifier: Apache-2.0
"""Options that all commands which read images have in common."""

from dataclasses import dataclass

from ..runtime.options import StrPath, option


IMAGES_HELP = (
    "Folder of images, tars or Parquet files; one of these; a text file with a path a line; a CSV or TSV file with "
    "columns `path` and `label`; or the id of a data set, user/name[/subset]. Where there are splits, such as folders "
    "`train` and `test`, one is named after a colon: folder:train."
)
PROGRESS_HELP = "Show a progress bar."
ON_ERROR_HELP = "What to do about an unreadable image: skip or fail."


@dataclass(frozen=True, kw_only=True)
class ImageColumnOptions:
    """Names the column of a table or list that has the images, and the folder of its paths."""

    image_column: str | None = option("Column of images, where there are several; of a list, if not `path`.", None)
    image_root: StrPath | None = option(
        "Folder where the paths in a table or list start, and below which they must stay; by default that of the "
        "table, and for absolute paths in a list any.",
        None,
    )

    @property
    def of_tables(self) -> dict[str, str | None]:
        """The options of tables and lists, by their names."""
        return {name: getattr(self, name, None) for name in ("image_column", "label_column", "image_root")}

    @property
    def of_tables_given(self) -> dict[str, str]:
        """The options that the user has given, by their names."""
        return {name: value for name, value in self.of_tables.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TableOptions(ImageColumnOptions):
    """Names the columns of a table or list that are read, and the folder of its paths."""

    label_column: str | None = option("Column of labels, if not `label`.", None)


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """How images are read, which results do not depend on."""

    num_workers: int | None = option(
        "Processes that read images; by default one a spare core, none for few images.", None, minimum=0
    )
    progress: bool = option(PROGRESS_HELP, True, python_only=True)
