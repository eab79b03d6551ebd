"""One extraction in a process of its own, for tests/gpu: with small shards, on the device that accelerate finds."""

import os
import signal
import sys

import torch

from modeling_dino.extraction import feature_files
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.options import ExtractOptions
from modeling_dino.runtime.processes import leave_processes


def extract(model: str, images: str, output: str, **options):
    """Extracts, also where an extra that only other sources need is not installed."""
    given = {"batch_size": 2, "progress": False, **options}
    return extract_features.__wrapped__(ExtractOptions(model=model, images=images, output=output, **given))


def kill_after_a_shard():
    """Ends this process, as if by another, when it has written its first shard."""
    write_shard = feature_files.FeatureFolder.write_shard

    def write_and_die(*arguments):
        write_shard(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    feature_files.FeatureFolder.write_shard = write_and_die


if __name__ == "__main__":
    feature_files.MIN_SHARD_ROWS = 4
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as tests/gpu/conftest.py
    if os.environ.get("DINO_TEST_KILL"):
        kill_after_a_shard()
    extract(*sys.argv[1:])
    leave_processes()
