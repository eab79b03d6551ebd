import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from device_extraction import extract
from noise_images import write_noise_images
from tiny_models import tiny_config

from modeling_dino import DinoModel, load_features
from modeling_dino.data.reader import Images
from modeling_dino.extraction import feature_files
from modeling_dino.extraction.compute import FeatureComputer, computing_threads
from modeling_dino.extraction.options import ExtractionSettings


NUM_IMAGES = 19
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extraction")
    torch.manual_seed(0)
    DinoModel(tiny_config()).save_pretrained(folder / "model")
    write_noise_images(folder / "images", NUM_IMAGES)
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_files, "MIN_SHARD_ROWS", 4)


def run(folder: Path, output: Path, device: torch.device, num_processes: int = 1, **environment: str) -> int:
    """Extracts in processes of its own, by `accelerate launch` if several; returns the exit code."""
    environment = {**os.environ, "PYTHONPATH": f"{HELPERS}{os.pathsep}{HELPERS.parents[1]}", **environment}
    if device.type == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--num_processes", str(num_processes), "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--multi_gpu"]
    arguments = [HELPERS / "device_extraction.py", folder / "model", folder / "images", output]
    done = subprocess.run([*launcher, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def assert_same_rows(output: Path, expected: Path, device: torch.device):
    found, wanted = load_features(output), load_features(expected)
    assert list(found["path"]) == list(wanted["path"])
    if device.type == "cpu":
        assert np.array_equal(found["feature"], wanted["feature"])
    else:
        np.testing.assert_allclose(found["feature"], wanted["feature"], rtol=0, atol=1e-5)


def test_two_processes_on_one_device_and_a_killed_run_give_the_same_rows(device, folder, tmp_path):
    expected = tmp_path / "one"
    extract(str(folder / "model"), str(folder / "images"), str(expected))
    assert len(load_features(expected)["path"]) == NUM_IMAGES
    assert run(folder, tmp_path / "two", device, num_processes=2) == 0
    assert_same_rows(tmp_path / "two", expected, device)
    assert run(folder, tmp_path / "killed", device, DINO_TEST_KILL="1") == -signal.SIGKILL
    assert run(folder, tmp_path / "killed", device) == 0
    assert_same_rows(tmp_path / "killed", expected, device)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"num_workers": 2}, {"resize": "none"}])
def test_options_change_no_more_than_they_say(device, folder, tmp_path, options):
    for name, given in (("plain", {}), ("other", options)):
        extract(str(folder / "model"), str(folder / "images"), str(tmp_path / name), **given)
    plain, other = (load_features(tmp_path / name)["feature"] for name in ("plain", "other"))
    assert plain.shape == other.shape
    if options == {"num_workers": 2}:
        np.testing.assert_allclose(other, plain, rtol=0, atol=1e-5)


def computer(features, device: torch.device, batch_size: int, width: int = 3) -> FeatureComputer:
    settings = ExtractionSettings(model="", images="", batch_size=batch_size)
    return FeatureComputer(features, device, settings, lambda pixels: pixels, {"feature": (width,)})


def images_of(pixels: torch.Tensor) -> Images:
    return Images(None, [{"index": i} for i in range(len(pixels))], pixels)


def test_too_large_batches_are_computed_in_smaller_ones(device):
    """On a GPU by its own allocator, which may have a small part of the memory; on a CPU by an error like its own."""
    sizes = []

    def features(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(pixels))
        if device.type == "cuda":
            torch.empty(len(pixels) * 2**28, dtype=torch.uint8, device=device)  # 256 MiB an image
        elif len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"cls": pixels.float().mean((2, 3))}

    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (torch.cuda.memory_reserved() + 5 * 2**28) / total), device
        )
    try:
        pixels = torch.rand(16, 3, 8, 8)
        compute = computer(features, device, batch_size=16)
        found = compute(images_of(pixels))["feature"]
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.testing.assert_close(found, pixels.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert sizes[:3] == [16, 8, 4]
    assert compute.max_batch_size == 4


def test_pinned_batches_are_not_written_over_before_they_are_copied(device):
    """Buffers are pinned, copied without waiting, and given back at once, as the loader's; the device is busy."""
    busy = torch.randn(2048 if device.type == "cuda" else 64, device=device)
    busy = busy.outer(busy)

    def features(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        product = busy
        for _ in range(4):
            product = (product @ busy).clamp(-1, 1)
        return {"cls": pixels.double().sum((2, 3)) + 0 * product[0, 0]}

    def batches(count: int, side: int):
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            images = images_of(torch.randint(256, (8, 3, side, side), generator=generator, dtype=torch.uint8))
            yield images.pin_memory() if device.type == "cuda" else images

    count, side = (100, 224) if device.type == "cuda" else (6, 16)
    compute = computer(features, device, batch_size=8)
    with computing_threads(device) as map_in_order:
        found = [values["feature"] for _, values in map_in_order(compute, batches(count, side))]
    for values, images in zip(found, batches(count, side)):
        assert torch.equal(values.double(), images.pixels.double().sum((2, 3)).float().double())
