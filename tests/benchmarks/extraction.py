"""
Measures the peak memory of an extraction by the number of images; `dino bench --what extraction` measures its speed.

    python tests/benchmarks/extraction.py                                    # for 2,000 and for 20,000 images
    python tests/benchmarks/extraction.py --engine openvino --dtype bfloat16
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.benchmark.extraction import write_jpegs


MEASURED = """
import resource, sys
from modeling_dino import extract_features
model, images, output, engine, dtype = sys.argv[1:]
extract_features(model=model, images=images, output=output, engine=engine, dtype=dtype, progress=False, num_workers=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main(
    counts: Annotated[str, typer.Option(help="With a comma between them.")] = "2000,20000",
    engine: str = "torch",
    dtype: str = "float32",
):
    """Prints the peak memory of the process that computes, and of the one that reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        DinoModel(DinoConfig(backbone="vit_tiny", image_size=64, head_type=None)).save_pretrained(folder / "model")
        [first] = write_jpegs(folder, 1, (500, 375))
        for count in map(int, counts.split(",")):
            images = folder / str(count)
            images.mkdir()
            for i in range(count):
                shutil.copy(first, images / f"{i:06d}.jpg")
            arguments = [folder / "model", images, folder / f"features-{count}", engine, dtype]
            command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks = [int(kib) / 1024 for kib in done.stdout.split()]
            print(f"{count} images: {peaks[0]:.1f} MiB computing, {peaks[1]:.1f} MiB reading")


if __name__ == "__main__":
    typer.run(main)
