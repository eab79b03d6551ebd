"""
Features from JPEG files: `dino extract` against transformers' pipeline, and its memory by the number of images.

    python tests/benchmarks/extraction.py speed     # images a second, and the ratio to the faster of two pipelines
    python tests/benchmarks/extraction.py memory    # peak memory for 2,000 and for 20,000 images

Speed: the same model, files and batch size; the rivals take turns in one process, in another order each round, and the
medians of their times are compared, as are their features. `dino extract` is timed as users run it, from opening the
files and loading the model to the last shard on the disk; the pipelines are loaded beforehand, and write nothing.
"""

import itertools
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import transformers
import typer
from PIL import Image
from transformers import pipeline

from modeling_dino import DinoConfig, DinoModel, load_features
from modeling_dino.demo_images import copy_photographs
from modeling_dino.extract import ExtractionSettings, extract_features


JPEG_SIZES = "500x375,1600x1200"  # a usual photograph of ImageNet, and one of a camera made smaller for the web
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Crops of photographs, each another one."""
    photographs = [Image.open(path).convert("RGB") for path in copy_photographs(folder / "photographs")]
    draw = random.Random(0)
    (folder / "images").mkdir()
    files = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        side = draw.uniform(0.4, 1) * min(photograph.width / size[0], photograph.height / size[1])
        width, height = side * size[0], side * size[1]
        left, top = draw.uniform(0, photograph.width - width), draw.uniform(0, photograph.height - height)
        crop = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        files.append(folder / "images" / f"{i:06d}.jpg")
        crop.save(files[-1], quality=92)
    return list(map(str, files))


def rivals(folder: Path, model: str, files: list[str], batch_size: int) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that compute the features (images, dim), by name."""
    pipe = pipeline("image-feature-extraction", model=model, device="cpu")

    def of_pipeline(num_workers: int) -> np.ndarray:
        outputs = pipe(files, batch_size=batch_size, num_workers=num_workers, pool=True, return_tensors=True)
        return torch.cat(list(outputs)).numpy()

    def of_extract() -> np.ndarray:
        settings = ExtractionSettings(model, str(folder / "images"), batch_size=batch_size)
        extract_features(settings, folder / "features", overwrite=True, progress=False)
        return load_features(folder / "features")["feature"].copy()

    return {
        "dino extract": of_extract,
        "pipeline": lambda: of_pipeline(0),
        "pipeline, 1 worker": lambda: of_pipeline(1),
    }


def take_turns(functions: dict[str, Callable[[], np.ndarray]], rounds: int) -> tuple[dict[str, float], dict]:
    """Median seconds of each, after a round that does not count, and what each returned."""
    seconds, results = {name: [] for name in functions}, {}
    for turn in range(rounds + 1):
        for name in sorted(functions, key=lambda _: random.random()):
            started = time.perf_counter()
            results[name] = functions[name]()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """One minus the smallest cosine between rows: the pipelines resize tensors, a grey level or two off."""
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(1 - cosines.min())


@app.command()
def speed(
    backbones: Annotated[str, typer.Option(help="With commas between them.")] = "vit_tiny,vit_small",
    sizes: Annotated[
        str, typer.Option(help="Of the JPEG files, width x height, with commas between them.")
    ] = JPEG_SIZES,
    count: Annotated[int, typer.Option(help="Images.")] = 256,
    batch_size: int = 32,
    rounds: int = 3,
    output: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
):
    """Images a second, and the ratio to the faster of the pipelines."""
    report = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "images": count}
    report |= {"torch": torch.__version__, "transformers": transformers.__version__, "batch_size": batch_size}
    for backbone, size in itertools.product(backbones.split(","), sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.manual_seed(0)
            DinoModel(DinoConfig(backbone=backbone, head_type=None)).save_pretrained(folder / "model")
            files = write_jpegs(folder, count, tuple(map(int, size.split("x"))))
            seconds, features = take_turns(rivals(folder, str(folder / "model"), files, batch_size), rounds)
        rates = {name: count / value for name, value in seconds.items()}
        ratio = rates["dino extract"] / max(rate for name, rate in rates.items() if name != "dino extract")
        difference = largest_difference(features["dino extract"], features["pipeline"])
        if difference > 1e-3:
            raise SystemExit(f"{backbone}: the features differ by {difference:.1e}")
        report[f"{backbone} {size}"] = {"images_per_second": rates, "ratio": ratio, "cosine_distance": difference}
        listed = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        print(f"{backbone}, {size}: {listed} images/s; {ratio:.2f} × the faster pipeline; 1 - cos {difference:.0e}")
    if output:
        output.write_text(json.dumps(report, indent=2) + "\n")


MEASURED = """
import resource, sys
from modeling_dino.extract import ExtractionSettings, extract_features
extract_features(ExtractionSettings(*sys.argv[1:3]), sys.argv[3], progress=False, num_workers=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@app.command()
def memory(counts: Annotated[str, typer.Option(help="With a comma between them.")] = "2000,20000"):
    """Peak memory of the process that computes, and of the one that reads, by the number of images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        DinoModel(DinoConfig(backbone="vit_tiny", image_size=64, head_type=None)).save_pretrained(folder / "model")
        [first] = write_jpegs(folder, 1, (500, 375))
        for count in map(int, counts.split(",")):
            images = folder / str(count)
            images.mkdir()
            for i in range(count):
                shutil.copy(first, images / f"{i:06d}.jpg")
            arguments = [folder / "model", images, folder / f"features-{count}"]
            command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks = [int(kib) / 1024 for kib in done.stdout.split()]
            print(f"{count} images: {peaks[0]:.1f} MiB computing, {peaks[1]:.1f} MiB reading")


if __name__ == "__main__":
    app()
