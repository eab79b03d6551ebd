# SPDX-License-Identifier: Apache-2.0
"""
Cuts the photographs inside the scikit-image package into the images that the demo trains and is tested on.

The left parts are for training. The right parts, which training never sees, are cut into places. Each place has plain
views, and views that are mirrored, blurred, and distorted in colour. To recognise the place of a distorted view,
features must keep what it shows and ignore how it was taken, which is what DINO learns.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..runtime.extras import PilImage, require
from ..runtime.seeds import seeded


# the photographs inside the package; it would download others
PHOTOGRAPHS = ["astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"]
PHOTOGRAPHS += ["grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"]
PHOTOGRAPHS += ["motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg"]
SAME_SCENE = "motorcycle_right.png"  # left out: its left part shows the right part of motorcycle_left.png
TRAINED_ON = 0.6  # share of the width of a photograph
TILES = 64  # from each photograph, to train on
TILE_SIZE = 64  # pixels
TILE_SCALE = (0.25, 0.5)  # of the shorter side of the photograph
PLACES = 3  # along the shorter side of the photograph
VIEWS = 8  # plain and distorted ones, of each place
VIEW_SIZE = 64  # pixels


def copy_photographs(folder: str | os.PathLike) -> list[Path]:
    """Copies scikit-image's photographs into a folder; returns the copies."""
    folder, source = Path(folder), Path(require("skimage.data", "demo").__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(source / name, folder / name)) for name in PHOTOGRAPHS if (source / name).is_file()]


def cut_photographs(photographs: list[Path], folder: str | os.PathLike, seed: int = 0) -> tuple[Path, Path, Path]:
    """
    Cuts photographs into images to train and test on.

    Returns:
        the folders of the tiles to train on, of plain views, and of distorted views; views are in a folder a place.
    """
    tiles, views, distorted = (Path(folder) / name for name in ("tiles", "views", "distorted"))
    draw = random.Random(seed)
    crop, distort = view_transforms()
    for path in photographs:
        if path.name == SAME_SCENE:
            continue
        left, right = halves(path)
        for number in range(TILES):
            save(draw_tile(left, draw), tiles / path.stem / f"{number}.png")
        for name, place in places(right):
            with seeded(draw.getrandbits(32)):
                for number in range(VIEWS):
                    save(crop(place), views / f"{path.stem}-{name}" / f"{number}.png")
                    save(distort(place), distorted / f"{path.stem}-{name}" / f"{number}.png")
    return tiles, views, distorted


def halves(path: Path) -> tuple[PilImage, PilImage]:
    """Returns the part of a photograph to train on, and the one to test on."""
    with require("PIL.Image").open(path) as file:
        photograph = file.convert("RGB")
    border = round(photograph.width * TRAINED_ON)
    width, height = photograph.size
    return photograph.crop((0, 0, border, height)), photograph.crop((border, 0, width, height))


def draw_tile(image: PilImage, draw: random.Random) -> PilImage:
    """Crops a random square, and resizes it."""
    side = int(image.height * draw.uniform(*TILE_SCALE))
    left, top = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
    return image.crop((left, top, left + side, top + side)).resize((TILE_SIZE, TILE_SIZE))


def places(image: PilImage) -> Iterator[tuple[str, PilImage]]:
    """Yields the squares of a grid, named by row and column."""
    side = min(image.height // PLACES, image.width)
    for row in range(image.height // side):
        for column in range(image.width // side):
            left, top = column * side, row * side
            yield f"{row}-{column}", image.crop((left, top, left + side, top + side))


def view_transforms():
    """Returns the transforms of a place: a random crop; and one mirrored, blurred, and distorted in colour."""
    v2 = require("torchvision.transforms.v2", "train")
    crop = v2.RandomResizedCrop(VIEW_SIZE, (0.4, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    distortions = [
        v2.RandomHorizontalFlip(1.0),
        v2.ColorJitter(0.4, 0.4, 0.4),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], 0.5),
        v2.RandomSolarize(128, 0.1),
    ]
    return crop, v2.Compose([crop, *distortions])


def save(image: PilImage, file: Path):
    """Saves an image, and makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, compress_level=1)  # the time matters more than the size
