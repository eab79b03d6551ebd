# SPDX-License-Identifier: Apache-2.0
"""What computes the features of a batch: the model in PyTorch, its graph in another engine, or an exported graph."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import ImageProcessingMixin

from ..backbone import has_initial_weights
from ..configuration_dino import DinoConfig
from ..export.engines import EXPORTERS, GRAPH_ENGINES, open_graph
from ..export.folder import ExportFacts, graph_fingerprint, read_export
from ..export.graphs import AXES, example_shape, write_onnx
from ..hub.loading import DTYPES, fixed_size, is_exported, load_model, model_fingerprint
from ..modeling_dino import DinoModel
from ..runtime.extras import require
from .features import MADE_OF, check_features, combine_tokens, image_features
from .options import ExtractionSettings


Features = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # pixel values (B, C, H, W) -> kinds of features


@dataclass
class FeatureModel:
    """
    A model that has been loaded, before it is made ready to compute.

    Args:
        model: without memory behind its weights for an exported graph.
        facts: what the manifest says about it, beside the settings.
        export: what `export.json` says of an exported graph.
    """

    settings: ExtractionSettings
    model: DinoModel
    facts: dict[str, Any]
    export: ExportFacts | None = None

    @property
    def config(self) -> DinoConfig:
        """The configuration of the model."""
        return self.model.config

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions whose versions the features depend on."""
        engine = () if self.settings.engine == "torch" else (self.settings.engine,)
        return "modeling-dino", "torch", "transformers", "pillow", *engine

    def device(self, default: torch.device) -> torch.device:
        """Returns the device on which features are computed: other engines run on the CPU."""
        return default if self.settings.engine == "torch" else torch.device("cpu")

    def on(self, device: torch.device, processor: ImageProcessingMixin, callers: int = 1) -> Features:
        """
        Makes the model ready on a device.

        Args:
            processor: gives the images their size.
            callers: how many threads call the result at a time.
        """
        if self.export is not None:
            return self._of_export(callers)
        self.model.to(device)
        if device.type == "cuda" and self.settings.dtype == "float32":
            torch.backends.cudnn.allow_tf32 = False  # PyTorch's default rounds what goes into convolutions to 10 bits
        if self.settings.engine == "torch":
            return self._of_torch()
        return self._of_graph(processor, callers)

    def _of_torch(self) -> Features:
        is_compiled = self.facts["prepared"] == "compile"
        model = self.model if is_compiled else self.model.prepare_for_inference()
        function = torch.compile(image_features) if is_compiled else image_features
        kinds, pooling = list(self.settings.columns.values()), self.settings.pooling
        return lambda pixel_values: function(model, pixel_values, kinds, *pooling)

    def _of_graph(self, processor: ImageProcessingMixin, callers: int) -> Features:
        graph = FeatureGraph(self.model, self.settings)
        size = fixed_size(processor)
        shape = example_shape(self.model)
        images = torch.zeros(shape if size is None else (*shape[:2], *size))
        dynamic = {axis: name for axis, name in AXES.items() if axis == 0 or size is None}
        with TemporaryDirectory(prefix="dino-") as folder:
            file = Path(folder) / "model.onnx"
            write_onnx(graph, images, dynamic, graph.kinds, file)
            self.model.to("meta")  # frees the weights, which the graph has
            return open_graph(file, self.settings.engine, self.settings.dtype, callers=callers)

    def _of_export(self, callers: int) -> Features:
        file = Path(self.settings.model) / self.export["file"]
        graph = open_graph(file, self.settings.engine, self.settings.dtype, callers=callers)

        def compute(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            found = graph(pixel_values)
            layers = [(found.get("patch_tokens"), found.get("pooler_output"))]
            kinds = list(self.settings.columns.values())
            return combine_tokens(kinds, layers, lambda _: found["projection"], self.settings.gem_p)

        self._check_graph(compute)
        return compute

    def _check_graph(self, compute: Features):
        """Raises ValueError if a graph does not give what the configuration and `export.json` beside it say."""
        shape = example_shape(self.model)
        kinds = list(self.settings.columns.values())
        expected = image_features(self.model, torch.empty(shape, device="meta"), kinds, *self.settings.pooling)
        try:
            found = compute(torch.zeros(shape))
        except (KeyError, AttributeError) as error:
            raise ValueError(f"{self.settings.model} is damaged: its graph lacks an output ({error})") from error
        for kind, values in expected.items():
            if found[kind].shape != values.shape:
                shapes = f"{tuple(found[kind].shape)}, not {tuple(values.shape)}"
                raise ValueError(f"{self.settings.model} is damaged: its graph gives {kind} of shape {shapes}")


class FeatureGraph(nn.Module):
    """Computes the features of a model by their kinds; it is what is recorded for other engines."""

    def __init__(self, model: DinoModel, settings: ExtractionSettings):
        super().__init__()
        self.model, self.kinds, self.pooling = model, list(settings.columns.values()), settings.pooling

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features = image_features(self.model, pixel_values, self.kinds, *self.pooling)
        return {kind: features[kind].float() for kind in self.kinds}


def load_feature_model(settings: ExtractionSettings, compile: bool = False) -> FeatureModel:
    """
    Loads a saved model, or what `dino export` made of one.

    Args:
        compile: run it through torch.compile.

    Raises:
        ValueError: if the engine cannot run it, or it does not have the features.
        OSError: if the model is missing or damaged.
    """
    if compile and settings.engine != "torch":
        raise ValueError(f"--compile is for --engine torch, not for {settings.engine}")
    if settings.engine != "torch":
        require(settings.engine, "export")
    if settings.engine == "onnxruntime" and settings.resize == "none":
        raise ValueError("onnxruntime needs too much memory for images in their own sizes: take openvino or longest")
    if is_exported(settings.model):
        return _load_export(settings)
    if settings.engine != "torch":
        for exporter in EXPORTERS:
            require(exporter, "export")
    if settings.engine == "onnxruntime" and settings.dtype != "float32":
        raise ValueError(f"onnxruntime computes in float32, not {settings.dtype}: take openvino, or an exported model")
    # OpenVINO computes in another dtype by itself
    dtype = DTYPES[settings.dtype] if settings.engine == "torch" else torch.float32
    model = load_model(settings.model, dtype)
    facts = {
        "model_revision": getattr(model.config, "_commit_hash", None),
        "model_fingerprint": model_fingerprint(model),
        "prepared": "graph" if settings.engine != "torch" else "compile" if compile else "eval",
        **({"random_weights": True} if has_initial_weights(model.backbone) else {}),
    }
    return FeatureModel(settings, model, facts)


def _load_export(settings: ExtractionSettings) -> FeatureModel:
    export, config = read_export(settings.model), DinoConfig.from_pretrained(settings.model)
    name = settings.model
    engines = {"onnx": GRAPH_ENGINES, "openvino": ("openvino",)}.get(export["to"])
    if engines is None:
        raise ValueError(f"{name} is a program of torch.export: name the model that it was exported from")
    if settings.engine not in engines:
        raise ValueError(f"{name} is exported to {export['to']}: pass --engine {' or '.join(engines)}")
    if settings.dtype != export["dtype"]:
        raise ValueError(f"{name} is exported in {export['dtype']}: pass --dtype {export['dtype']}")
    for option in ("batch_size", "image_size", "uint8"):
        if export[option]:
            raise ValueError(f"{name} is exported with {option}={export[option]}: export it without, for any images")
    check_outputs(settings, config, export)
    folder = (Path(name) / export["file"]).parent
    facts = {
        "model_revision": None,
        "model_fingerprint": graph_fingerprint(folder),
        "prepared": f"export{', int8' if export['quantized'] else ''}",
        **({"random_weights": True} if export.get("random_weights") else {}),
    }
    with torch.device("meta"):
        model = DinoModel(config).eval()
    return FeatureModel(settings, model, facts, export)


def check_outputs(settings: ExtractionSettings, config: DinoConfig, export: ExportFacts):
    """Raises ValueError if an exported graph does not give what the features are made of."""
    kinds = list(settings.columns.values())
    for kind in kinds:
        check_features(config, kind, *settings.pooling)
    if settings.last_blocks != 1 or tuple(settings.scales) != (1.0,):
        raise ValueError("an exported model gives the last block at one scale: pass --last-blocks 1, and no --scales")
    if facets := [kind for kind in kinds if kind not in MADE_OF]:
        raise ValueError(f"an exported model has no {facets[0]}: name the model that it was exported from")
    needed = set().union(*(MADE_OF[kind] for kind in kinds))
    if missing := sorted(needed - set(export["outputs"].values())):
        raise ValueError(f"{settings.model} lacks the outputs {', '.join(missing)}: export it with them, by --outputs")


def fingerprint_of(model: str, settings: dict[str, Any]) -> str:
    """Computes the `model_fingerprint` that features of these settings have if they are of a model."""
    if is_exported(model):
        return graph_fingerprint((Path(model) / read_export(model)["file"]).parent)
    dtype = settings["dtype"] if settings.get("engine", "torch") == "torch" else "float32"
    return model_fingerprint(load_model(model, DTYPES[dtype]))
