"""
Measures `dino report` of many images: the time to write the page, its size, and the time until a browser shows it.

    python tests/benchmarks/report.py            # 20,000 images, five visits

Images are crops of scikit-image's photographs, JPEGs of 160 x 120; features are drawn around a center for each
photograph, 384 numbers wide. The page is opened from its file in headless Chromium, with a new profile each time.
`usable` is when the map is painted and answers clicks, `pictures` when all thumbnails of the first view are painted,
too. Both are counted from the start of the navigation.
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

from modeling_dino.demo.images import copy_photographs
from modeling_dino.report.options import ReportOptions
from modeling_dino.report.page import write_report


WIDTH = 384
SIZE = (160, 120)


def write_images(folder: Path, count: int):
    """Writes different crops of the photographs, in a folder for each photograph."""
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
    """Writes random features as `dino extract` writes features."""
    records = records_of(folder / "images")
    generator = np.random.default_rng(0)
    names = sorted({record.columns["label"] for record in records})
    labels = np.array([names.index(record.columns["label"]) for record in records])
    centers = generator.normal(size=(len(names), WIDTH))
    features = centers[labels] + 2 * generator.normal(size=(len(records), WIDTH))
    write_features(folder / "features", folder / "images", features)


def main(
    count: Annotated[int, typer.Option(help="Number of images.")] = 20_000,
    visits: Annotated[int, typer.Option(help="Number of visits of the browser.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Folder to keep images, features and the page in.")] = None,
    only_visit: Annotated[bool, typer.Option("--only-visit", help="Only open the page in the folder.")] = False,
):
    """Makes images, features and a page, and opens it."""
    with tempfile.TemporaryDirectory() as name:
        place = folder or Path(name)
        if not (place / "features" / "manifest.json").exists():
            write_images(place, count)
            make_features(place)
        if not only_visit:
            options = ReportOptions(folder=str(place / "features"), output=str(place / "report.html"))
            print(write_report(options))
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
