# SPDX-License-Identifier: Apache-2.0
"""The options of `dino bench`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..hub.loading import DTYPES
from ..runtime.options import StrPath, option


BENCHMARKS = ("features", "latency", "attention", "training", "training-dinov2", "training-dinov2-patch-head")
BENCHMARKS += ("training-dinov2-drop-path", "loading", "knn", "extraction")
LIBRARIES = ("timm", "transformers", "torchvision")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """
    Says what is measured, and how. Weights do not matter for speed, and are random.

    Raises:
        ValueError: if a value cannot work.
    """

    summary: ClassVar[str] = "Measures how fast models are on this machine, beside the same models in other libraries."

    models: Sequence[StrPath] = option(
        "Presets, folders or hub ids, with commas between them.", ("dino_vits16", "dino_resnet50")
    )
    what: Sequence[str] = option(f"{', '.join(BENCHMARKS)}; several with commas.", ("features", "latency"))
    engines: bool = option(
        "Measure the features by each engine that is installed, in each precision, in the place of --what.", False
    )
    against: Sequence[str] = option("Libraries to compare with, where they are installed.", LIBRARIES)
    device: str = option("cpu or cuda.", "cpu")
    dtype: str = option("float32, bfloat16 or float16.", "float32")
    threads: int = option("Number of threads on a CPU.", 1)
    batch_size: int = option("Images in one forward pass.", 8)
    training_batch_size: int = option("Images in one training step.", 4)
    extraction_images: int = option("Images in an extraction.", 256)
    image_size: int | None = option("Pixels a side, if not the model's.", None)
    rounds: int = option("Number of rounds in which all take turns; the medians count.", 5)
    compile: bool = option("Measure compiled models, too.", False)
    output: StrPath | None = option("File to write the results to.", None, flag="--json")

    def __post_init__(self):
        for name, values, allowed in (
            ("benchmark", self.what, BENCHMARKS),
            ("library", self.against, LIBRARIES),
            ("dtype", [self.dtype], DTYPES),
            ("device", [self.device.split(":")[0]], DEVICES),
        ):
            if unknown := [value for value in values if value not in allowed]:
                raise ValueError(f"unknown {name} {unknown[0]!r}: allowed are {', '.join(allowed)}")
        for name in ("threads", "batch_size", "training_batch_size", "extraction_images", "image_size", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.engines and (self.device, self.dtype) != ("cpu", "float32"):
            raise ValueError("--engines measures all precisions on the CPU: leave out --device and --dtype")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("there is no GPU that PyTorch can use: pass --device cpu")
