# SPDX-License-Identifier: Apache-2.0
"""
Measures features, CLS attention and loading of a model, beside the same in other libraries.

All participants of a contest have the same weights, input and dtype.
"""

import copy
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import torch

from ..configuration_dino import DinoConfig
from ..export.engines import installed_engines, open_graph
from ..export.graphs import write_onnx
from ..export.outputs import ExportedModel
from ..extraction.features import image_features
from ..hub.info import backbone_flops
from ..hub.loading import DTYPES, load_config
from ..modeling_dino import DinoModel
from .cuda_graphs import with_graphs, without_eager
from .options import BenchOptions
from .rivals import feature_rivals
from .timing import TOLERANCES, Contest, measure


def random_model(name: str, options: BenchOptions, **overrides) -> DinoModel:
    """Makes a model of random weights, without a head, on the device and in the dtype of the benchmark."""
    config = load_config(name)
    for key, value in {"head_type": None, **overrides}.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return DinoModel(config).eval().to(options.device, DTYPES[options.dtype])


def random_images(model: DinoModel, options: BenchOptions, count: int) -> torch.Tensor:
    """Makes images of the given size, or of the model's."""
    side = options.image_size or model.config.image_size
    return torch.randn(count, model.config.num_channels, side, side, device=model.device, dtype=model.dtype)


def measure_features(name: str, options: BenchOptions, single: bool = False) -> dict:
    """
    Measures the features of a batch, or of a single image.

    Models are prepared for inference, and also compiled if asked for; ResNets of rivals also in channels_last.
    """
    what, batch_size = ("latency", 1) if single else ("features", options.batch_size)
    model = random_model(name, options)
    images = random_images(model, options, batch_size)
    functions = {
        "dino": partial(image_features, model.prepare_for_inference()),
        "dino forward": lambda x: model(x).pooler_output,
    }
    rivals = feature_rivals(model, options.against, images.shape[-1])
    functions |= rivals
    if not model.backbone.has_attention:  # convolutions
        images_last = images.contiguous(memory_format=torch.channels_last)
        for rival, module in rivals.items():
            last = copy.deepcopy(module).to(memory_format=torch.channels_last)
            functions[f"{rival} channels_last"] = lambda x, last=last: last(images_last)
    if options.compile:
        torch._dynamo.reset()
        mode = "reduce-overhead" if single and options.device != "cpu" else "compiled"
        for who in ("dino", *without_eager(rivals)):
            functions[f"{who} {mode}"] = compile_function(functions[who], mode, options.device)
    side, parameters = images.shape[-1], model.num_parameters()
    flops = flops_of(model.config, side)
    facts = {"parameters": parameters, "flops_per_image": flops, "batch_size": batch_size, "image_size": side}
    functions = {who: torch.no_grad()(partial(function, images)) for who, function in functions.items()}
    if single:
        graphs, facts["left_out"] = with_graphs(functions, ("dino", *without_eager(rivals)), images)
        functions |= graphs
    ours = [who for who in functions if who.startswith("dino")]
    tolerance = TOLERANCES[options.dtype]
    contest = Contest(what, name, functions, ours, tolerance, batch_size, flops * batch_size, facts=facts)
    return measure(contest, options)


def flops_of(config: DinoConfig, side: int) -> int:
    """Counts the operations of the backbone for an image of this size."""
    config = copy.deepcopy(config)
    config.image_size = side
    return backbone_flops(config)


def compile_function(function: Callable, mode: str, device: str) -> Callable:
    """Passes a function through `torch.compile`; CPUs get constant weights, reduce-overhead CUDA graphs."""
    if device == "cpu":
        return with_constant_weights(torch.compile(function))
    return torch.compile(function, mode=None if mode == "compiled" else mode)


def with_constant_weights(compiled: Callable) -> Callable:
    """Makes the compiler pack weights and fold norms, at the first call without gradients."""
    from torch._inductor import config  # the import takes a second

    def run(x: torch.Tensor) -> torch.Tensor:
        # As `options` of torch.compile it comes too late: Dynamo has made the weights arguments by then.
        with config.patch(freezing=True):
            return compiled(x)

    return run


def measure_attention(name: str, options: BenchOptions) -> dict | None:
    """Measures the attention of the CLS token in the last block, beside whole maps, of which it is a row."""
    model = random_model(name, options, position_interpolation="size")  # as transformers does
    if not model.backbone.has_attention:
        return None
    images = random_images(model, options, 1)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")  # as the original's blocks
    functions = {
        "dino": lambda: model.get_cls_attention(images).flatten(2),
        "dino, map of the last block": lambda: model.get_attention_maps(images)[0][:, :, 0, 1:],
    }
    ours = list(functions)
    with tempfile.TemporaryDirectory(prefix="dino-") as folder:
        graphs = attention_graphs(model, images, Path(folder), options.threads) if options.device == "cpu" else {}
    functions |= graphs
    ours += graphs
    functions["original's way"] = lambda: eager.get_attention_maps(images)[0][:, :, 0, 1:]
    if "transformers" in options.against:
        theirs = feature_rivals(model, ["transformers"])["transformers eager"].model
        arguments = {"output_attentions": True, "interpolate_pos_encoding": True}
        functions["transformers eager"] = lambda: theirs(images, **arguments).attentions[-1][:, :, 0, 1:]
    functions = {who: torch.no_grad()(function) for who, function in functions.items()}
    attention, *others = (function() for function in functions.values())
    difference = max((other - attention).abs().max().item() for other in others)
    facts = {"image_size": images.shape[-1], "batch_size": 1, "largest_difference": difference}
    return measure(Contest("attention", name, functions, ours, 1e-3, images=1, facts=facts), options)


def attention_graphs(model: DinoModel, images: torch.Tensor, folder: Path, threads: int) -> dict[str, Callable]:
    """Returns the same attention by other engines, where they are installed."""
    engines = installed_engines()
    if not engines or model.dtype != torch.float32:
        return {}
    exported, file = ExportedModel(model, ["cls_attention"]), folder / "model.onnx"
    write_onnx(exported, images, {}, exported.graph_names(), file)
    graphs = {engine: open_graph(file, engine, threads=threads) for engine in engines}
    return {engine: lambda graph=graph: graph(images)["cls_attention"].flatten(2) for engine, graph in graphs.items()}


IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
IMPORTS = {
    "dino": "import modeling_dino",
    "transformers.PreTrainedModel": "from transformers import PreTrainedModel",
}


def measure_imports(options: BenchOptions) -> dict:
    """Measures imports in new processes; the first round does not count."""
    seconds = {who: [] for who in IMPORTS}
    for _ in range(options.rounds + 1):
        for who in random.sample(list(IMPORTS), len(IMPORTS)):
            command = [sys.executable, "-c", IMPORT.format(IMPORTS[who])]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds[who].append(float(printed.split()[-1]))
    medians = {who: statistics.median(values[1:]) for who, values in seconds.items()}
    ratio = {"dino": medians["transformers.PreTrainedModel"] / medians["dino"]}
    return {"what": "import", "model": "", "seconds": medians, "ratio": ratio, "unequal": []}


def measure_loading(name: str, options: BenchOptions) -> dict:
    """Measures `from_pretrained` of a folder, beside transformers', and beside reading the file of weights."""
    from safetensors.torch import load_file

    model = random_model(name, options).cpu().float()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        model.save_pretrained(ours)
        weights = ours / "model.safetensors"
        functions = {"dino": lambda: sum_of_all(DinoModel.from_pretrained(ours).state_dict())}
        rivals = feature_rivals(model, ["transformers"]) if "transformers" in options.against else {}
        if rivals:
            rival = next(iter(rivals.values())).model
            rival.save_pretrained(theirs)
            has_pooler = "add_pooling_layer" in signature(type(rival).__init__).parameters
            kwargs = {"add_pooling_layer": False} if has_pooler else {}
            functions["transformers"] = lambda: sum_of_all(type(rival).from_pretrained(theirs, **kwargs).state_dict())
        functions["reading the file"] = lambda: sum_of_all(load_file(weights))
        facts = {"mib": weights.stat().st_size / 2**20}
        return measure(Contest("loading", name, functions, ["dino", "reading the file"], None, facts=facts), options)


def sum_of_all(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the sum of all numbers, for which all weights must have been read."""
    return torch.stack([tensor.float().sum() for tensor in tensors.values()]).sum()
