# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is to measure, and how."""

from dataclasses import dataclass

import torch

from ..hub.loading import DTYPES


BENCHMARK_NAMES = ("features", "latency", "attention", "training", "loading", "knn", "extraction")
LIBRARIES = ("timm", "transformers", "torchvision")
PRODUCT_SIZES = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the machine's rate


@dataclass(frozen=True)
class BenchSettings:
    """
    Args:
        models: presets, folders or hub ids; weights do not matter, and are random.
        what: of [`BENCHMARK_NAMES`].
        against: of [`LIBRARIES`].
        batch_size: images in a pass of `features`, and `training_batch_size` in a step of `training`.
        compile: measure compiled models, too.
        image_size: in pixels; by default the model's.

    Raises:
        ValueError: if a value cannot work.
    """

    models: list[str]
    what: list[str]
    against: list[str]
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    batch_size: int = 8
    training_batch_size: int = 4
    image_size: int | None = None
    rounds: int = 5
    compile: bool = False

    def __post_init__(self):
        for name, values, allowed in (
            ("benchmark", self.what, BENCHMARK_NAMES),
            ("library", self.against, LIBRARIES),
            ("dtype", [self.dtype], DTYPES),
        ):
            if unknown := [value for value in values if value not in allowed]:
                raise ValueError(f"unknown {name} {unknown[0]!r}: allowed are {', '.join(allowed)}")
        for name in ("threads", "batch_size", "training_batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.device.split(":")[0] not in PRODUCT_SIZES:
            raise ValueError(f"unknown device {self.device!r}: allowed are {', '.join(PRODUCT_SIZES)}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("there is no GPU that PyTorch can use: pass --device cpu")


__all__ = ["LIBRARIES", "PRODUCT_SIZES", "BenchSettings"]
