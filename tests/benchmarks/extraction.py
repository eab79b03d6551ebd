"""
Measures features from JPEG files: `dino extract` beside transformers' pipeline, and its memory.

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
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.benchmark.extraction import extractors, largest_difference, write_jpegs
from modeling_dino.benchmark.timing import take_turns


JPEG_SIZES = "500x375,1600x1200"  # a usual photograph of ImageNet, and one of a camera made smaller for the web
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    """Measures images a second, and the ratio to the faster of the pipelines."""
    report = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "images": count}
    report |= {"torch": torch.__version__, "transformers": transformers.__version__, "batch_size": batch_size}
    for backbone, size in itertools.product(backbones.split(","), sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.manual_seed(0)
            DinoModel(DinoConfig(backbone=backbone, head_type=None)).save_pretrained(folder / "model")
            files = write_jpegs(folder, count, tuple(map(int, size.split("x"))))
            functions = extractors(folder, str(folder / "model"), files, batch_size)
            features = {name: function() for name, function in functions.items()}
            seconds = {name: statistics.median(values) for name, values in take_turns(functions, rounds)[0].items()}
        rates = {name: count / value for name, value in seconds.items()}
        fastest = max(rate for name, rate in rates.items() if name.startswith("pipeline"))
        ratios = {name: rate / fastest for name, rate in rates.items() if name.startswith("dino")}
        difference = largest_difference(features["dino extract"], features["pipeline"])
        if difference > 1e-3:
            raise SystemExit(f"{backbone}: the features differ by {difference:.1e}")
        report[f"{backbone} {size}"] = {"images_per_second": rates, "ratios": ratios, "cosine_distance": difference}
        listed = ", ".join(f"{name} {rate:.1f} ({ratios.get(name, 1):.2f})" for name, rate in rates.items())
        print(f"{backbone}, {size}: {listed} images/s (× the faster pipeline); 1 - cos {difference:.0e}")
    if output:
        output.write_text(json.dumps(report, indent=2) + "\n")


MEASURED = """
import resource, sys
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.options import ExtractOptions
model, images, output = sys.argv[1:]
extract_features(ExtractOptions(model=model, images=images, output=output, progress=False, num_workers=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@app.command()
def memory(counts: Annotated[str, typer.Option(help="With a comma between them.")] = "2000,20000"):
    """Measures the peak memory of the process that computes, and of the one that reads, by the number of images."""
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
