"""What a GPU can make fail: `make test-gpu`. On a CPU it runs with DINO_TEST_DEVICE=cpu, and is skipped without."""

import os

import pytest
import torch


os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # read at the first product: else no run repeats bit for bit
IS_WANTED = torch.cuda.is_available() or "DINO_TEST_DEVICE" in os.environ


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("gpu"))
            item.add_marker(pytest.mark.skipif(not IS_WANTED, reason="no GPU, and no DINO_TEST_DEVICE=cpu"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    name = os.environ.get("DINO_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("DINO_TEST_DEVICE=cuda, but there is no GPU that PyTorch can use")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


@pytest.fixture(autouse=True)
def exact_float32():
    """Products of float32 are those of float32, not of TF32, on a GPU that has it."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    yield
    for setting, value in zip(settings, before):
        setting.allow_tf32 = value
