# SPDX-License-Identifier: Apache-2.0
"""Makes int8 graphs by the engines' own tools, and measures what that costs."""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import normalize

from ..configuration_dino import DinoConfig
from ..data.evaluation_transform import ImageTransform
from ..data.image_source import why_no_images
from ..data.reader import Batch, ImageReader, all_records, batched, read_batches
from ..data.sources import open_source
from ..hub.loading import load_image_processor
from ..runtime.extras import require
from .check import random_images
from .engines import Graph
from .options import ExportOptions
from .outputs import INPUT


MAX_IMAGES = 256
BATCH_SIZE = 8
ROUNDS = 5
LEAST_COSINE = 0.5  # of features that are not lost
QUANTIZED = ["Conv", "Gemm", "MatMul"]  # ONNX's names of what has weights


def images_to_quantize_by(options: ExportOptions, config: DinoConfig) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Reads images as the graph takes them, in batches: every other one to calibrate by, and the others to measure by.
    Without images there are none to calibrate by, and random ones to measure by.

    Raises:
        ValueError: if fewer than four of the images can be read, or the model does not take 8 bits.
    """
    if options.calibrate is None:
        side = options.image_size or config.image_size
        shape = (BATCH_SIZE, config.num_channels, side, side)
        return [], [random_images(shape, options.uint8, seed) for seed in range(4)]
    source = open_source(options.calibrate, **options.of_tables)
    processor = load_image_processor(options.model, config, image_size=options.image_size)
    transform = ImageTransform(processor, config.num_channels)
    reader = ImageReader(transform, config.num_channels, transform.rescale_factor)
    records = batched(islice(all_records(source), MAX_IMAGES), BATCH_SIZE)
    read = list(read_batches(reader, map(Batch, records), num_workers=0))
    pixels = [images.pixels for images in read if images.pixels is not None]
    if not pixels:
        skipped = {name: reason for images in read for name, reason in images.skipped.items()}
        raise ValueError(why_no_images(options.calibrate, source.notes, skipped))
    images = torch.cat(pixels if options.uint8 else [transform.normalize(x) for x in pixels])
    if len(images) < 4:
        raise ValueError(f"{options.calibrate} has {len(images)} images that can be read, but 4 are needed")
    return list(images[::2].split(options.batch_size or BATCH_SIZE)), list(
        images[1::2].split(options.batch_size or BATCH_SIZE)
    )


def quantize_onnx(file: Path, batches: list[torch.Tensor]):
    """Makes an ONNX model one of int8, with the ranges of activations of these batches; without any, of each batch."""
    tools = require("onnxruntime.quantization", "export")
    is_large = file.stat().st_size > 2**30 or any(file.parent.glob("*.data"))
    common = {"per_channel": True, "use_external_data_format": is_large, "op_types_to_quantize": QUANTIZED}
    common |= {"weight_type": tools.QuantType.QInt8, "extra_options": {"MatMulConstBOnly": True}}
    float_file = file.rename(file.with_name("float.onnx"))
    with _quiet():
        if not batches:
            tools.quantize_dynamic(float_file, file, **common)
        else:
            common["extra_options"]["CalibStridedMinMax"] = 1  # keeps the ranges alone of what it has seen
            tools.quantize_static(float_file, file, _reader(tools, batches), **common)
    float_file.unlink()


def _reader(tools, batches: list[torch.Tensor]):
    class Reader(tools.CalibrationDataReader):
        """Hands batches to ONNX Runtime."""

        def __init__(self):
            self.left = iter(batches)

        def get_next(self):
            images = next(self.left, None)
            return None if images is None else {INPUT: images.numpy()}

        def set_range(self, start_index: int, end_index: int):
            self.left = iter(batches[start_index:end_index])

        def __len__(self):
            return len(batches)

    return Reader()


def quantize_openvino(file: Path, batches: list[torch.Tensor], is_transformer: bool, output: Path | None = None):
    """
    Makes a model of OpenVINO, or an ONNX model, one of int8, with the ranges of activations of these batches.

    Args:
        output: the file to write (.xml); by default it takes the place of the other.
    """
    os.environ.setdefault("NNCF_CI", "1")  # it would report to its makers
    nncf, openvino = require("nncf", "export"), require("openvino", "export")
    nncf.set_log_level(logging.ERROR)
    with _quiet():
        model = openvino.Core().read_model(str(file))
        data = nncf.Dataset(batches, lambda images: images.numpy())
        model_type = nncf.ModelType.TRANSFORMER if is_transformer else None
        quantized = nncf.quantize(model, data, model_type=model_type, subset_size=len(batches))
        if output is None:  # not written over: who has opened the graph reads the weights from there
            file.with_suffix(".bin").unlink()
        openvino.save_model(quantized, str(output or file), compress_to_fp16=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the tools log and print."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class QuantizationCost:
    """What a graph in int8 has lost and gained beside the same graph before."""

    num_images: int
    are_random: bool
    cosine: float  # of the features, the mean over images
    least_cosine: float
    same_neighbour: float  # share of images whose nearest neighbour is the same
    size: float  # over that of the graph before
    speed: float

    def __str__(self) -> str:
        images = f"{self.num_images} {'random ' if self.are_random else ''}images"
        return (
            f"int8, by {images}: cosine to the features before {self.cosine:.4f} (least {self.least_cosine:.4f}), the "
            f"same nearest neighbour for {self.same_neighbour:.0%}, {self.size:.2f} of the size, {self.speed:.2f} "
            "times as fast"
        )

    def as_dict(self) -> dict:
        """Returns the numbers by their names."""
        return asdict(self)


def measure_cost(
    before: Graph, after: Graph, batches: list[torch.Tensor], size: float, are_random: bool
) -> QuantizationCost:
    """
    Compares the features of two graphs, and the time that they take in turns.

    Args:
        size: of the files of the second, over that of the first.

    Raises:
        ValueError: if the features are lost.
    """
    one, other = (normalize(torch.cat([features_of(graph(x)) for x in batches]), dim=1) for graph in (before, after))
    cosines = (one * other).sum(1)
    if not cosines.mean() > LEAST_COSINE:  # NaN is not
        raise ValueError(f"int8 loses the features: the cosine to those before is {cosines.mean():.2f}")
    neighbours = [(x @ x.T).fill_diagonal_(-2).argmax(1) for x in (one, other)]
    same = (neighbours[0] == neighbours[1]).float().mean()
    times = [[_seconds(graph, batches[0]) for graph in (before, after)] for _ in range(ROUNDS)]
    speed = median(first / second for first, second in times)
    return QuantizationCost(
        len(one), are_random, float(cosines.mean()), float(cosines.min()), float(same), size, speed
    )


def features_of(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns one vector an image: its feature, or else all values of the first output."""
    return outputs.get("pooler_output", next(iter(outputs.values()))).flatten(1)


def _seconds(graph: Callable, images: torch.Tensor) -> float:
    started = time.perf_counter()
    graph(images)
    return time.perf_counter() - started
