import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_dino.data.reader import Images
from modeling_dino.extraction.compute import FeatureComputer
from modeling_dino.extraction.options import ExtractionSettings


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def two_threads(features, batch_size: int, num_images: int) -> int:
    """Computes the means of two batches of noise, each in a thread; returns the size of batches at the end."""
    settings = ExtractionSettings(model="", images="", batch_size=batch_size)
    device, shapes = torch.device("cpu"), {"feature": (3,)}
    compute = FeatureComputer(features, device, settings, lambda pixels: pixels, shapes, callers=2)
    pixels = torch.rand(2, num_images, 3, 8, 8)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(compute, [Images(None, [{"index": i} for i in range(num_images)], x) for x in pixels])
    torch.testing.assert_close(torch.stack([batch["feature"] for batch in found]), pixels.mean((3, 4)))
    return compute.max_batch_size


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_does_not_fit_beside_another_batch_is_computed_alone(batch_size):
    """Of two threads at least one finds no memory, as the other has it, whatever the size of its batch."""
    inside, met, lock, waited = [], threading.Barrier(2, timeout=10), threading.Lock(), []

    def features(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        inside.append(len(pixels))
        try:
            with lock:
                is_first = len(waited) < 2
                waited.append(1)
            if is_first:
                met.wait()
            if len(inside) > 1:
                raise NO_MEMORY
            return {"cls": pixels.mean((2, 3))}
        finally:
            inside.pop()

    assert two_threads(features, batch_size, num_images=4) == max(1, batch_size // 2)


def test_an_image_that_does_not_fit_alone_is_an_error():
    def features(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NO_MEMORY

    with pytest.raises(ValueError, match="one image is too large for the memory of cpu"):
        two_threads(features, 4, num_images=4)
