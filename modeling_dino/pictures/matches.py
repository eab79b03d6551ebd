# SPDX-License-Identifier: Apache-2.0
"""Draws which patches of two images correspond: those that are each other's nearest neighbours.

As Deep ViT Features as Dense Visual Descriptors, https://arxiv.org/abs/2112.05814, whose descriptors are the keys of
block 9 of 12, and https://github.com/ShirAmir/dino-vit-features beside it.
Where we deviate: a descriptor is of one patch, without the bins of those around it; all patches are compared, not the
salient ones alone; and what is drawn is spread by cells of the first image, not by clusters of descriptors.

Letters in shapes: N and M patches of the two images, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from ..data.frames import Frame, open_frames
from ..data.image_values import size_of
from ..extraction.features import image_features
from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..runtime.extras import PilImage, require
from ..runtime.finite import check_finite
from ..runtime.marked_files import MARK, check_marked
from ..runtime.options import takes_options
from ..runtime.processes import processes
from .options import MatchOptions
from .patch_images import GAP, RANDOM_WEIGHTS, PatchTransform, even_hues, mosaic
from .picture_files import describe_model, new_file, open_transform, save_picture


MATCH_MARK = f"{MARK} matches"
TABLE_COLUMNS = "first_x,first_y,second_x,second_y,similarity"  # begins tables of matches
ROWS_AT_ONCE = 1024  # patches of the first image that are compared with all of the second
LINE_WIDTH, RADIUS = 2, 4  # pixels


@dataclass(frozen=True)
class Matches:
    """
    The patches of two images that are each other's nearest neighbours, the most similar first.

    Args:
        first, second: x and y of the patches' centers, in pixels of the stored images, (number, 2), float64.
        similarities: cosines of their features, (number,), float64.
        drawn: places of those that are drawn.
        features: the kind of features that were compared.
        about: sentences about the model.
        file: the picture.
    """

    first: torch.Tensor
    second: torch.Tensor
    similarities: torch.Tensor
    drawn: torch.Tensor
    features: str
    about: list[str]
    file: Path

    @property
    def remarks(self) -> list[str]:
        """The line about weights that are random."""
        return [line for line in self.about if line == RANDOM_WEIGHTS]

    def __str__(self) -> str:
        found = f"{len(self.similarities)} matches by {self.features}, {len(self.drawn)} of them drawn"
        return f"{found} -> {self.file}"


@dataclass(frozen=True)
class View:
    """
    Holds what a model sees of an image.

    Args:
        picture: the resized image, cropped to whole patches.
        features: one for each patch, (N, D), float32.
        grid: height and width in patches.
        scale: pixels of the stored image in one of the picture, along x and y.
    """

    picture: PilImage
    features: torch.Tensor
    grid: tuple[int, int]
    scale: tuple[float, float]

    def centers(self, patches: torch.Tensor) -> torch.Tensor:
        """Returns x and y of the centers of patches in the picture: (number,) -> (number, 2), float64."""
        rows, columns = patches // self.grid[1], patches % self.grid[1]
        return (torch.stack([columns, rows], dim=1).double() + 0.5) * (self.picture.width / self.grid[1])


@takes_options(MatchOptions, command="match")
def match_images(options: MatchOptions) -> Matches:
    """
    The table has a row for each match, the most similar first: `first_x`, `first_y`, `second_x`, `second_y` in pixels
    of the stored images from their upper left corners, and `similarity`, the cosine.

    Returns:
        all matches.

    Raises:
        ValueError: if an option cannot work, the model has no such features, or an image cannot be read.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    check_marked(options.output, MATCH_MARK)
    check_marked(options.table, TABLE_COLUMNS)
    model = load_model(options.model)
    transform = open_transform(options, model)
    kind = options.features or f"keys@{model.config.num_hidden_layers * 3 // 4}"
    frames = [read_one(path, model, transform) for path in (options.first, options.second)]
    model = model.to(processes().device)
    first, second = (view_of(frame, model, transform, kind) for frame in frames)
    pairs, similarities = mutual_neighbours(first.features, second.features)
    drawn = spread_out(pairs[:, 0], first.grid, options.top)
    about = describe_model(options.model, model, options.size)
    centers = [view.centers(patches) for view, patches in zip((first, second), pairs.unbind(1))]
    picture = draw_matches([first, second], [points[drawn] for points in centers])
    legend = (
        f"Lines join {len(drawn)} of the {len(pairs)} pairs of patches that are each other's nearest neighbours by "
        f"the cosine of their {kind}: the most similar, spread over the first image."
    )
    titled = {f"{options.first} and {options.second}": picture}
    save_picture(mosaic([titled], [*about, legend]), Path(options.output), MATCH_MARK)
    stored = [points * torch.tensor(view.scale, dtype=torch.float64) for view, points in zip((first, second), centers)]
    matches = Matches(*stored, similarities, drawn, kind, about, Path(options.output))
    if options.table is not None:
        write_matches(matches, Path(options.table))
    return matches


def read_one(path: str, model: DinoModel, transform: PatchTransform) -> Frame:
    """Reads an image. Raises ValueError if it cannot be read, or there are several of that name."""
    frames = open_frames(path, model.config.num_channels, transform.size, "fail", transform.rescale_factor)
    frame, *others = islice(frames, 2)
    if others:
        raise ValueError(f"{path} has several images: name one")
    return frame


@torch.inference_mode()
def view_of(frame: Frame, model: DinoModel, transform: PatchTransform, kind: str) -> View:
    """Computes the features of an image's patches; raises ValueError if they are not finite, or there are none."""
    image = transform.crop(frame.image)
    pixel_values = transform.pixel_values(image).to(model.device)
    (features,) = image_features(model, pixel_values, kind).float().cpu()
    check_finite(features[None], "what the model sees of", [frame.source])
    scale = tuple(before / after for before, after in zip(size_of(frame.image), transform.resized_size(frame.image)))
    picture = transform.picture(image).convert("RGB")
    return View(picture, features, model.backbone.grid(pixel_values), scale)


def mutual_neighbours(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the vectors that are each other's nearest neighbours by their cosine, the most similar first. Of several that
    are equally near, the first is the nearest.

    Args:
        first, second: (N, D) and (M, D).

    Returns:
        places in `first` and in `second`, (number, 2); and the cosines, (number,), in float64, as all arithmetic.
    """
    first, second = normalize(first.double(), dim=1), normalize(second.double(), dim=1)
    of_first = []  # the nearest of each in the second
    of_second = torch.zeros(len(second), dtype=torch.long)
    greatest = torch.full((len(second),), -math.inf, dtype=torch.float64)
    for i, rows in enumerate(first.split(ROWS_AT_ONCE)):
        cosines = rows @ second.T
        of_first.append(cosines.argmax(1))
        values, places = cosines.max(0)
        is_nearer = values > greatest
        of_second = torch.where(is_nearer, i * ROWS_AT_ONCE + places, of_second)
        greatest = torch.where(is_nearer, values, greatest)
    nearest = torch.cat(of_first)
    pairs = torch.stack([torch.arange(len(first)), nearest], dim=1)[of_second[nearest] == torch.arange(len(first))]
    similarities, order = greatest[pairs[:, 1]].sort(descending=True, stable=True)
    return pairs[order], similarities


def spread_out(patches: torch.Tensor, grid: tuple[int, int], number: int) -> torch.Tensor:
    """
    Chooses matches all over an image: the first in each of about so many square cells, then the second in each, and so
    on.

    Args:
        patches: the patches of the matches in a grid (h, w), the most similar first.
        number: how many are chosen at most.

    Returns:
        places in `patches`, in ascending order.
    """
    side = math.ceil(math.sqrt(math.prod(grid) / number))
    cells = (patches // grid[1] // side) * grid[1] + patches % grid[1] // side
    seen: dict[int, int] = {}
    turns = []  # how many matches in the same cell are more similar
    for cell in cells.tolist():
        turns.append(seen.get(cell, 0))
        seen[cell] = turns[-1] + 1
    return torch.tensor(turns).argsort(stable=True)[:number].sort().values


def draw_matches(views: Sequence[View], points: Sequence[torch.Tensor]) -> PilImage:
    """Draws two images side by side, and a line from each point of one, (number, 2), to that of the other."""
    Image, ImageDraw = require("PIL.Image"), require("PIL.ImageDraw")
    left, right = (view.picture for view in views)
    picture = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), "white")
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width + GAP, 0))
    draw = ImageDraw.Draw(picture)
    starts, ends = points[0], points[1] + torch.tensor([left.width + GAP, 0])
    colors = map(tuple, (even_hues(len(starts)) * 255).int().tolist())
    for start, end, color in zip(starts.tolist(), ends.tolist(), colors):
        draw.line((*start, *end), fill=color, width=LINE_WIDTH)
        for center in (start, end):
            draw.circle(center, RADIUS, fill=color, outline="black")
    return picture


def write_matches(matches: Matches, file: Path):
    """Writes all matches to a .csv file."""
    rows = torch.cat([matches.first, matches.second, matches.similarities.unsqueeze(1)], dim=1).numpy()
    with new_file(file, TABLE_COLUMNS) as partial:
        np.savetxt(partial, rows, fmt="%.8g", delimiter=",", header=TABLE_COLUMNS, comments="")
