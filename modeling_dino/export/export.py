# SPDX-License-Identifier: Apache-2.0
"""Exports a model: loads it, records a graph, quantizes it if asked to, compares it, and writes a folder."""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..backbone import has_initial_weights
from ..hub.loading import DTYPES, EXPORT_FILE, load_model, model_fingerprint
from ..image_processing_dino import save_image_transform
from ..modeling_dino import DinoModel
from ..runtime.extras import installed_version
from ..runtime.options import takes_options
from ..runtime.whole_files import check_is_free, whole_output
from .check import BOUNDS, largest_difference, other_shapes, random_images
from .engines import Graph, open_graph, open_program
from .folder import FORMAT, file_of, graph_size
from .graphs import AXES, example_shape, usual_side, write_onnx, write_openvino, write_program
from .options import ExportOptions
from .outputs import ExportedModel, output_names
from .quantize import QuantizationCost, images_to_quantize_by, measure_cost, quantize_onnx, quantize_openvino


ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class ExportSummary:
    """Says what was written, and how it was compared."""

    output: Path
    file: str
    outputs: dict[str, str]
    largest_difference: float
    cost: QuantizationCost | None
    compared: str

    def __str__(self) -> str:
        return f"{self.compared}\nwrote {', '.join(self.outputs)} -> {self.output / self.file}"


@takes_options(ExportOptions, command="export")
def export_model(options: ExportOptions) -> ExportSummary:
    """
    Returns:
        what was written, and the largest difference to PyTorch, or what quantization costs.

    Raises:
        ValueError: if the model lacks an output, or the graph does not compute what it should; nothing is written.
        OSError: if the model is missing or damaged.
        ImportError: if the engine is not installed.
    """
    output = Path(options.output)
    check_is_free(output)
    model = load_model(options.model)
    transform = model.image_transform if options.uint8 else None
    exported = ExportedModel(model, output_names(options.outputs), transform)
    shapes = shapes_to_compare(exported, options)
    to_quantize_by = images_to_quantize_by(options, model.config) if options.quantize else None
    file = file_of(options.to, bool(options.quantize))
    with whole_output(output) as partial, TemporaryDirectory(prefix="dino-") as temporary:
        (partial / file).parent.mkdir(parents=True)
        written = Path(temporary) / Path(file).name if options.quantize else partial / file
        write_graph(exported, options, written)
        graph = open_exported(written, options)
        difference = compare(graph, exported, shapes, options)
        compared, cost = describe_difference(difference, shapes, options), None
        if to_quantize_by is not None:
            cost = quantize(written, partial / file, graph, to_quantize_by, model, options)
            compared += f"\n{cost}"
        save_beside(model, partial)
        facts = describe(exported, options, file, difference, cost)
        (partial / EXPORT_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return ExportSummary(output, file, facts["outputs"], difference, cost, compared)


def shapes_to_compare(exported: ExportedModel, options: ExportOptions) -> list[tuple[int, int, int]]:
    """Returns shapes of batches; raises ValueError if the size that is asked for is too small for the model."""
    least = exported.model.backbone.min_image_size
    if options.image_size is not None and options.image_size < least:
        raise ValueError(f"image_size={options.image_size} must be at least {least} for {options.model}")
    return list(other_shapes(usual_side(exported.model.config), least, (options.batch_size, options.image_size)))


def write_graph(exported: ExportedModel, options: ExportOptions, file: Path):
    """Records the graph, and writes it."""
    images = random_images(example_shape(exported.model, options.batch_size, options.image_size), options.uint8)
    is_fixed = {0: options.batch_size, 2: options.image_size, 3: options.image_size}
    dynamic = {axis: name for axis, name in AXES.items() if not is_fixed[axis]}
    names = exported.graph_names()
    if options.to == "openvino":  # which computes in another dtype than the graph's by itself
        write_openvino(exported, images, dynamic, names, file, compress=options.dtype == "float16")
        return
    if options.dtype != "float32":  # of a copy: the other is what the graph is compared with
        exported = copy.deepcopy(exported)
        exported.model.to(DTYPES[options.dtype])
    if options.to == "onnx":
        write_onnx(exported, images, dynamic, names, file)
    else:
        write_program(exported, images, dynamic, file)


def open_exported(file: Path, options: ExportOptions) -> Graph:
    """Opens what was written, in the engine that it is for."""
    if options.to == "torch":
        return open_program(file)
    return open_graph(file, ENGINES[options.to], options.dtype, torch.get_num_threads())


def compare(
    graph: Graph, exported: ExportedModel, shapes: list[tuple[int, int, int]], options: ExportOptions
) -> float:
    """Returns the largest difference to PyTorch in float32; raises ValueError if it is beyond rounding."""
    channels = exported.model.config.num_channels
    differences = []
    for seed, (batch_size, height, width) in enumerate(shapes):
        images = random_images((batch_size, channels, height, width), options.uint8, seed)
        differences.append(largest_difference(graph, exported, images))
    largest, bound = max(differences), BOUNDS[options.dtype]
    if not largest <= bound:
        raise ValueError(
            f"the graph is wrong, and nothing is written: its outputs differ by {largest:.1e} of the largest from "
            f"PyTorch's in float32, which is more than {bound:.0e}"
        )
    return largest


def describe_difference(difference: float, shapes: list[tuple[int, int, int]], options: ExportOptions) -> str:
    """Returns a line that says what was compared."""
    sizes = ", ".join(f"{number} of {height} x {width}" for number, height, width in shapes)
    engine = ENGINES.get(options.to, "torch.export")
    return f"{engine} in {options.dtype} differs from PyTorch by {difference:.1e} of the largest ({sizes} pixels)"


def quantize(
    file: Path,
    output: Path,
    before: Graph,
    images: tuple[list[torch.Tensor], list[torch.Tensor]],
    model: DinoModel,
    options: ExportOptions,
) -> QuantizationCost:
    """Writes the graph in a file as one in int8, and returns what that costs."""
    calibration, measured = images
    write = quantize_onnx if options.to == "onnx" else quantize_openvino
    write(file, calibration, output, model.backbone.has_patch_tokens)
    after, size = open_exported(output, options), graph_size(output.parent) / graph_size(file.parent)
    return measure_cost(before, after, measured, size, options.calibrate is None)


def save_beside(model: DinoModel, folder: Path):
    """Writes configuration and image transform, as `save_pretrained` does."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_image_transform(model.image_transform, folder)


def describe(
    exported: ExportedModel, options: ExportOptions, file: str, difference: float, cost: QuantizationCost | None
) -> dict:
    """Returns what `export.json` says; see [`ExportFacts`]."""
    engine = ENGINES.get(options.to, "torch")
    return {
        "format": FORMAT,
        "to": options.to,
        "file": file,
        "model": options.model,
        "model_fingerprint": model_fingerprint(exported.model),
        **({"random_weights": True} if has_initial_weights(exported.model.backbone) else {}),
        "dtype": options.dtype,
        "quantized": cost and asdict(cost),
        "batch_size": options.batch_size,
        "image_size": options.image_size,
        "uint8": options.uint8,
        "outputs": dict(zip(exported.graph_names(), exported.outputs)),
        "largest_difference": difference,
        "versions": {name: installed_version(name) for name in ("modeling-dino", "torch", engine)},
    }
