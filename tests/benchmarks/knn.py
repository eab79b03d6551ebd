"""
Memory of k-NN: `knn_predict` of 2,000 images by any number of others, beside all similarities at once.

    python tests/benchmarks/knn.py

Speed is in `dino bench --what knn`.
"""

import os
import resource
import subprocess
import sys
from typing import Annotated

import typer

from modeling_dino.benchmark.knn import make_features
from modeling_dino.evaluation.knn import knn_predict


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(hidden=True)
def once(num_images: int, width: int):
    """Peak memory in MiB of classifying 2,000 images by so many, and of making these features alone."""
    features, labels = make_features(num_images + 2000, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    knn_predict(features[2000:], labels[2000:], features[:2000])
    print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@app.command()
def memory(counts: Annotated[str, typer.Option(help="With commas between them.")] = "20000,200000", width: int = 64):
    """What `knn_predict` takes beyond the features it is given."""
    for count in map(int, counts.split(",")):
        command = [sys.executable, __file__, "once", str(count), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        before, peak = map(float, done.stdout.split())
        similarities = count * 2000 * 4 / 2**20
        print(f"{count} training images: {peak - before:.0f} MiB; all similarities at once are {similarities:.0f} MiB")


if __name__ == "__main__":
    app()
