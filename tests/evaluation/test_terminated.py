"""Evaluations that are ended from outside."""

import os
import signal
import subprocess
import sys
import time

import pytest
from evaluation_images import coloured_images


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(tmp_path, number):
    """Neither while the features of images are computed, nor by the workers that read these."""
    (tmp_path / "data").mkdir()
    folder = coloured_images(tmp_path / "data", per_class=200)
    (tmp_path / "t").mkdir()  # short, as there are sockets in it
    arguments = ["--train", folder / "train", "--test", folder / "test", "--model", folder / "model"]
    command = [sys.executable, "-m", "modeling_dino", "knn", *arguments, "--num-workers", "1", "--batch-size", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "t").glob("dino-*/manifest.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err, err
    assert not list((tmp_path / "t").glob("dino-*"))
