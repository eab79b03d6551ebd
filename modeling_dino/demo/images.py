# SPDX-License-Identifier: Apache-2.0
"""What the demo trains and is tested on: parts of the photographs that lie inside the scikit-image package.

The left parts are for training. The right parts, which training never sees, are cut into places; of each there are a
few views as they are, and a few that are mirrored, distorted in colour and blurred. Whoever is to say of a distorted
view which place it shows needs features that keep what is there and lose how it was taken: what DINO learns.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.extras import require
from ..training.multi_crop import seeded


if TYPE_CHECKING:
    from PIL import Image

# those of the images inside the package that are photographs (others it would download)
PHOTOGRAPHS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
]
SAME_SCENE = "motorcycle_right.png"  # as another one, so that its left part shows what is right in that
TRAINED_ON = 0.6  # of the width of a photograph
TILES = 64  # to train on, of a photograph
TILE_SIZE = 96  # pixels
TILE_SCALE = (0.25, 0.5)  # of the shorter side of the photograph
PLACES = 3  # along the shorter side of the photograph
VIEWS = 8  # of a place, of each kind
VIEW_SIZE = 64  # pixels


def copy_photographs(folder: Path) -> list[Path]:
    """Copies scikit-image's photographs into a folder."""
    source = Path(require("skimage.data").__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(source / name, folder / name)) for name in PHOTOGRAPHS if (source / name).is_file()]


def cut_photographs(photographs: list[Path], folder: Path, seed: int) -> tuple[Path, Path, Path]:
    """
    Cuts them into what is trained and tested on.

    Returns:
        the folders of tiles to train on, of views of places as they are, and of distorted ones; the sub-folders of the
        latter two are the places.
    """
    tiles, views, distorted = (folder / name for name in ("tiles", "views", "distorted"))
    draw = random.Random(seed)
    look, distort = view_transforms()
    for path in photographs:
        if path.name == SAME_SCENE:
            continue
        left, right = halves(path)
        for number in range(TILES):
            save(draw_tile(left, draw), tiles / path.stem / f"{number}.png")
        for name, place in places(right):
            with seeded(draw.getrandbits(32)):
                for number in range(VIEWS):
                    save(look(place), views / f"{path.stem}-{name}" / f"{number}.png")
                    save(distort(place), distorted / f"{path.stem}-{name}" / f"{number}.png")
    return tiles, views, distorted


def halves(path: Path) -> "tuple[Image.Image, Image.Image]":
    """The part of a photograph to train on, and the one to test on."""
    with require("PIL.Image").open(path) as file:
        photograph = file.convert("RGB")
    border = round(photograph.width * TRAINED_ON)
    width, height = photograph.size
    return photograph.crop((0, 0, border, height)), photograph.crop((border, 0, width, height))


def draw_tile(image: "Image.Image", draw: random.Random) -> "Image.Image":
    """A square from anywhere in an image."""
    side = int(image.height * draw.uniform(*TILE_SCALE))
    left, top = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
    return image.crop((left, top, left + side, top + side)).resize((TILE_SIZE, TILE_SIZE))


def places(image: "Image.Image") -> "Iterator[tuple[str, Image.Image]]":
    """The squares of a grid, by row and column."""
    side = min(image.height // PLACES, image.width)
    for row in range(image.height // side):
        for column in range(image.width // side):
            left, top = column * side, row * side
            yield f"{row}-{column}", image.crop((left, top, left + side, top + side))


def view_transforms():
    """How a place is looked at: as it is, from nearer or farther; and mirrored, in other colours, blurred."""
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


def save(image: "Image.Image", file: Path):
    """Writes it, and the folders it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


__all__ = ["PHOTOGRAPHS", "copy_photographs", "cut_photographs"]
