"""
`dino report` of many images: seconds to make the page, its size, and when a browser can use it.

    python tests/benchmarks/report.py            # 20,000 images, five visits

Images are crops of scikit-image's photographs, JPEGs of 160 x 120; features are drawn around a center for each
photograph, 384 numbers wide. The page is opened from its file in headless Chromium, anew each time. `usable`: the map
is painted, and clicks are answered; `pictures`: all thumbnails of the first view are painted, too. Both are counted
from the start of the navigation.
"""

import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from tqdm import tqdm


sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))

from browser import chromium, wait_for_mark
from feature_folders import records_of, write_features

from modeling_dino.demo.run import copy_photographs
from modeling_dino.report.page import write_report


WIDTH = 384
SIZE = (160, 120)


def write_images(folder: Path, count: int):
    """Crops of the photographs, each another one, in a folder for each photograph."""
    photographs = [(path.stem, Image.open(path).convert("RGB")) for path in copy_photographs(folder / "photographs")]
    draw = random.Random(0)
    for i in tqdm(range(count), "crops"):
        name, photograph = photographs[i % len(photographs)]
        side = draw.uniform(0.2, 0.9) * min(photograph.width / SIZE[0], photograph.height / SIZE[1])
        width, height = side * SIZE[0], side * SIZE[1]
        left, top = draw.uniform(0, photograph.width - width), draw.uniform(0, photograph.height - height)
        crop = photograph.resize(SIZE, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        file = folder / "images" / name / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        crop.save(file, quality=85)


def make_features(folder: Path):
    """What `dino extract` would write, with features drawn at random."""
    records = records_of(folder / "images")
    generator = np.random.default_rng(0)
    names = sorted({record.columns["label"] for record in records})
    labels = np.array([names.index(record.columns["label"]) for record in records])
    centers = generator.normal(size=(len(names), WIDTH))
    features = centers[labels] + 2 * generator.normal(size=(len(records), WIDTH))
    write_features(folder / "features", folder / "images", features)


def main(
    count: Annotated[int, typer.Option(help="Images.")] = 20_000,
    visits: Annotated[int, typer.Option(help="Of the browser.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="To keep images, features and the page in.")] = None,
    only_visit: Annotated[bool, typer.Option("--only-visit", help="Open the page that the folder has.")] = False,
):
    """Makes images, features and a page, and opens it."""
    with tempfile.TemporaryDirectory() as name:
        place = folder or Path(name)
        if not (place / "features" / "manifest.json").exists():
            write_images(place, count)
            make_features(place)
        if not only_visit:
            print(write_report(place / "features", place / "report.html"))
        seconds = {"usable": [], "pictures": []}
        for _ in range(visits):
            with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
                browser.get(f"file://{(place / 'report.html').resolve()}")
                for event, values in seconds.items():
                    values.append(wait_for_mark(browser, event))
        for event, values in seconds.items():
            print(f"{event}: median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f} s")


if __name__ == "__main__":
    typer.run(main)
