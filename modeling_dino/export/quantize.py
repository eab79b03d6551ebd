# SPDX-License-Identifier: Apache-2.0
"""Makes int8 graphs by the engines' own tools, and measures what that costs."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import normalize

from ..configuration_dino import DinoConfig
from ..data.evaluation_transform import ImageTransform
from ..data.image_source import remarks_on_images, why_no_images
from ..data.reader import Batch, ImageReader, all_records, batched, read_batches
from ..data.sources import open_source
from ..hub.loading import fixed_size, load_image_processor
from ..runtime.extras import require
from .check import random_images
from .engines import Graph, own_signal_stack
from .graphs import quiet, usual_side
from .options import ExportOptions
from .outputs import INPUT


logger = logging.getLogger(__name__)

MAX_IMAGES, LEAST_IMAGES = 256, 2  # in all, and of each half
BATCH_SIZE, RANDOM_BATCHES = 8, 4
MAX_PROTOBUF = 2**30  # bytes; what is larger has its weights in another file
ROUNDS = 5
LEAST_COSINE = 0.5  # of features that are not lost
PRODUCTS = ["Gemm", "MatMul"]  # ONNX's names of what has weights
# A transformer's convolutions cost little, and its first loses most of what int8 loses: they stay in float32.
CONVOLUTION, CONVOLUTIONS_OF_OPENVINO = "Conv", ["Convolution", "GroupConvolution"]


def images_to_quantize_by(options: ExportOptions, config: DinoConfig) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Reads images as the graph takes them, in batches: every other one to calibrate by, and the others to measure by.
    Without images there are none to calibrate by, and random ones to measure by.

    Raises:
        ValueError: if there are too few images that can be read, or they may differ in size.
    """
    batch_size = options.batch_size or BATCH_SIZE
    if options.calibrate is None:
        side = options.image_size or usual_side(config)
        shape = (batch_size, config.num_channels, side, side)
        return [], [random_images(shape, options.uint8, seed) for seed in range(RANDOM_BATCHES)]
    images = read_images(options, config)
    least = 2 * (options.batch_size or LEAST_IMAGES)
    if len(images) < least:
        raise ValueError(f"{options.calibrate} has {len(images)} images that can be read, but {least} are needed")
    halves = [half.split(batch_size) for half in (images[::2], images[1::2])]
    calibration, measured = ([x for x in half if not options.batch_size or len(x) == batch_size] for half in halves)
    return calibration, measured


def read_images(options: ExportOptions, config: DinoConfig) -> torch.Tensor:
    """Reads up to `MAX_IMAGES` images from all over a source: (N, C, H, W), as the graph takes them."""
    source = open_source(options.calibrate, **options.of_tables)
    processor = load_image_processor(options.model, config, image_size=options.image_size)
    if fixed_size(processor) is None:
        raise ValueError(f"the image transform of {options.model} gives images of different sizes: pass --image-size")
    transform = ImageTransform(processor, config.num_channels)
    reader = ImageReader(transform, config.num_channels, transform.rescale_factor)
    step = max(1, (source.num_images or 0) // MAX_IMAGES)
    records = islice(islice(all_records(source), 0, None, step), MAX_IMAGES)
    read = list(read_batches(reader, map(Batch, batched(records, BATCH_SIZE)), num_workers=0))
    skipped = {name: reason for images in read for name, reason in images.skipped.items()}
    pixels = [images.pixels for images in read if images.pixels is not None]
    if not pixels:
        raise ValueError(why_no_images(options.calibrate, source.notes, skipped))
    for remark in remarks_on_images(skipped):
        logger.warning(remark)
    return torch.cat(pixels if options.uint8 else [transform.normalize(x) for x in pixels])


def quantize_onnx(file: Path, batches: list[torch.Tensor], output: Path, is_transformer: bool):
    """Makes an ONNX model one of int8, with the ranges of activations of these batches; without any, of each batch."""
    tools = require("onnxruntime.quantization", "export")
    is_large = file.stat().st_size > MAX_PROTOBUF or any(file.parent.glob("*.data"))
    kinds = PRODUCTS if is_transformer else [*PRODUCTS, CONVOLUTION]
    common = {"per_channel": True, "use_external_data_format": is_large, "op_types_to_quantize": kinds}
    common |= {"weight_type": tools.QuantType.QInt8, "extra_options": {"MatMulConstBOnly": True}}
    with quiet():
        if not batches:
            tools.quantize_dynamic(file, output, **common)
        else:
            common["extra_options"]["CalibStridedMinMax"] = 1  # keeps the ranges alone of what it has seen
            tools.quantize_static(file, output, _reader(tools, batches), **common)


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


def quantize_openvino(file: Path, batches: list[torch.Tensor], output: Path, is_transformer: bool):
    """Makes a model of OpenVINO, or an ONNX model, one of int8, with the ranges of activations of these batches."""
    os.environ.setdefault("NNCF_CI", "1")  # it would report to its makers
    nncf, openvino = require("nncf", "export"), require("openvino", "export")
    nncf.set_log_level(logging.ERROR)
    with quiet(), own_signal_stack():
        model = openvino.Core().read_model(str(file))
        data = nncf.Dataset(batches, lambda images: images.numpy())
        kept = {
            "model_type": nncf.ModelType.TRANSFORMER,
            "ignored_scope": nncf.IgnoredScope(types=CONVOLUTIONS_OF_OPENVINO, validate=False),
        }
        quantized = nncf.quantize(model, data, subset_size=len(batches), **(kept if is_transformer else {}))
        openvino.save_model(quantized, str(output), compress_to_fp16=False)


@dataclass(frozen=True)
class QuantizationCost:
    """Holds what a graph has lost and gained by int8."""

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
            f"int8, by {images}: cosine to the features of the graph before {self.cosine:.4f} (least "
            f"{self.least_cosine:.4f}), the same nearest neighbour for {self.same_neighbour:.0%}, {self.size:.2f} of "
            f"the size, {self.speed:.2f} times as fast"
        )


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
