# SPDX-License-Identifier: Apache-2.0
"""Measures the features of a model by each engine that is installed, in each precision that `dino export` offers."""

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from ..export.engines import installed_engines, open_graph
from ..export.graphs import write_onnx
from ..export.outputs import ExportedModel
from ..export.quantize import quantize_onnx, quantize_openvino
from ..extraction.features import image_features
from ..modeling_dino import DinoModel
from .contests import flops_of, random_images, random_model
from .options import BenchOptions
from .rivals import feature_rivals
from .timing import TOLERANCES, Contest, measure


FEATURE = "pooler_output"
CALIBRATION_BATCHES = 4
INT8_TOLERANCE = 0.5  # on random images and weights; what int8 costs is measured by `dino export` on images


def measure_engines(name: str, options: BenchOptions) -> dict:
    """
    Measures the features of a batch by PyTorch in float32 and bfloat16, and by other engines in these and in int8.

    Ratios are to the fastest rival in float32. What computes in less precision is compared with less tolerance.
    """
    model = random_model(name, options)
    images = random_images(model, options, options.batch_size)
    functions, tolerances = torch_functions(name, model, options)
    with tempfile.TemporaryDirectory(prefix="dino-") as folder:
        for engine in installed_engines():
            graphs, loose = engine_functions(engine, model, images, Path(folder), options.threads)
            functions, tolerances = functions | graphs, tolerances | loose
        ours = list(functions)
        functions |= feature_rivals(model, options.against, images.shape[-1])
        side, flops = images.shape[-1], flops_of(model.config, images.shape[-1])
        facts = {"batch_size": options.batch_size, "image_size": side, "flops_per_image": flops}
        functions = {who: torch.no_grad()(partial(function, images)) for who, function in functions.items()}
        work = options.batch_size, flops * options.batch_size
        tolerance = TOLERANCES["float32"]
        return measure(Contest("engines", name, functions, ours, tolerance, *work, tolerances, facts), options)


def torch_functions(
    name: str, model: DinoModel, options: BenchOptions
) -> tuple[dict[str, Callable], dict[str, float]]:
    """Returns the features by PyTorch, and tolerances for those in less precision."""
    half = random_model(name, options).to(torch.bfloat16).prepare_for_inference()
    functions = {
        "dino": partial(image_features, model.prepare_for_inference()),
        "dino bfloat16": lambda x: image_features(half, x).float(),
    }
    return functions, {"dino bfloat16": TOLERANCES["bfloat16"]}


def engine_functions(
    engine: str, model: DinoModel, images: torch.Tensor, folder: Path, threads: int
) -> tuple[dict[str, Callable], dict[str, float]]:
    """Returns the features by an engine in its precisions, and tolerances for those in less than float32."""
    exported = ExportedModel(model, ["features"])
    batches = [torch.randn_like(images) for _ in range(CALIBRATION_BATCHES)]
    file, opened = folder / f"{engine}.onnx", partial(open_graph, engine=engine, threads=threads)
    write_onnx(exported, torch.zeros_like(images), {0: "batch"}, exported.graph_names(), file)
    graphs = {engine: opened(file)}
    int8 = f"{engine} int8"
    if engine == "openvino":
        graphs["openvino bfloat16"] = opened(file, dtype="bfloat16")
        if find_spec("nncf"):
            int8_file = folder / "openvino.xml"
            quantize_openvino(file, batches, int8_file, model.backbone.has_patch_tokens)
            graphs |= {int8: opened(int8_file), f"{int8}, bfloat16": opened(int8_file, dtype="bfloat16")}
    else:
        int8_file = folder / "int8.onnx"
        quantize_onnx(file, [], int8_file, model.backbone.has_patch_tokens)
        graphs[int8] = opened(int8_file)
    functions = {who: lambda x, graph=graph: graph(x)[FEATURE] for who, graph in graphs.items()}
    loose = {who: INT8_TOLERANCE if "int8" in who else TOLERANCES["bfloat16"] for who in graphs if who != engine}
    return functions, loose
