# SPDX-License-Identifier: Apache-2.0
"""Draws contact sheets, on each row a query, then its neighbours, the most similar first."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.image_source import ImageRecord
from ..data.reader import all_records, decode_record
from ..data.sources import open_source
from ..pictures.patch_images import SMALL, shortened, with_lines
from ..pictures.picture_files import save_picture
from ..runtime.extras import PilImage, require
from ..runtime.marked_files import MARK
from .evaluation_data import EvaluationFeatures


Name = str | int

TILE, GAP, CAPTION, BORDER = 128, 8, 20, 4  # pixels
RIGHT, WRONG, UNKNOWN = "#1a7f37", "#cf222e", "white"
SHEET_MARK = f"{MARK} contact sheet"
MAX_COLUMNS = 20  # neighbours


@dataclass(frozen=True)
class Tile:
    """
    One picture of a row.

    Args:
        name: name of the image, as in [`EvaluationFeatures`].
        caption: text below it.
        color: color of its border.
    """

    name: Name
    caption: str
    color: str = UNKNOWN


def draw_contact_sheet(
    file: Path,
    rows: Sequence[tuple[Tile, Sequence[Tile]]],
    queries: EvaluationFeatures,
    index: EvaluationFeatures,
    about: Sequence[str] = (),
):
    """
    Reads queries and their neighbours again, and draws them into a PNG file.

    Args:
        rows: queries, and the neighbours of each.
        queries, index: the features of the images, which say where they are.
        about: sentences that stand above the rows.

    Raises:
        ValueError: if an image is no longer there, or the file is not a contact sheet.
    """
    Image = require("PIL.Image")
    of_queries = read_thumbnails(queries, {query.name for query, _ in rows})
    of_index = read_thumbnails(index, {tile.name for _, tiles in rows for tile in tiles[:MAX_COLUMNS]})
    columns = 1 + min(MAX_COLUMNS, max(len(tiles) for _, tiles in rows))
    width, height = TILE + GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + 3 * GAP, len(rows) * height + GAP), "white")
    for row, (query, tiles) in enumerate(rows):
        top = GAP + row * height
        place_tile(sheet, (GAP, top), query, of_queries[query.name])
        for column, tile in enumerate(tiles[:MAX_COLUMNS], 1):
            place_tile(sheet, (3 * GAP + column * width, top), tile, of_index[tile.name])
    save_picture(with_lines(sheet, above=about), file, SHEET_MARK)


def place_tile(sheet: PilImage, corner: tuple[int, int], tile: Tile, thumbnail: PilImage):
    """Draws a tile; the thumbnail is in the middle of a square of the color of the border."""
    ImageDraw, ImageOps = require("PIL.ImageDraw"), require("PIL.ImageOps")
    left, top = corner
    inside = TILE - 2 * BORDER
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=tile.color)
    sheet.paste(ImageOps.pad(thumbnail, (inside, inside), color="white"), (left + BORDER, top + BORDER))
    draw.text((left, top + TILE + 2), shortened(tile.caption, TILE, SMALL), fill="black", font_size=SMALL)


def read_thumbnails(part: EvaluationFeatures, names: Collection[Name]) -> dict[Name, PilImage]:
    """Reads images by their names, and makes them small. Raises ValueError if an image cannot be found or read."""
    thumbnails = {}
    for name, record in find_in_source(part, set(names)).items():
        try:
            thumbnails[name], _ = decode_record(record, num_channels=None)
        except ValueError as error:
            raise ValueError(f"cannot read {name}: {error}") from error
        thumbnails[name].thumbnail((TILE, TILE))
    return thumbnails


def find_in_source(part: EvaluationFeatures, names: set[Name]) -> dict[Name, ImageRecord]:
    """
    Finds images in the source that they were extracted from, which is read through up to the last of them. A name is
    compared with those of the source, and never opened as a path: features from elsewhere may name any file. Raises
    ValueError if an image is not there.
    """
    settings, found = part.settings, {}
    if settings["streaming"]:
        raise ValueError(f"the images of {part.source} were streamed: there is no sheet of such")
    source = open_source(
        settings["images"],
        image_column=settings["image_column"],
        label_column=settings["label_column"],
        image_root=settings.get("image_root"),
    )
    for record in all_records(source):
        name = record.columns.get("path", record.columns.get("index"))
        if name in names:
            found[name] = record
            if len(found) == len(names):
                return found
    raise ValueError(f"{min(names - set(found), key=str)} is no longer in {settings['images']}: no sheet without it")
