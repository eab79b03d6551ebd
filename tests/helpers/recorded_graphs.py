"""Graphs that are recorded once, since that takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from modeling_dino.export import export, graphs
from modeling_dino.extraction import feature_models


@contextmanager
def graphs_recorded_once() -> Iterator[None]:
    """The same graph of the same model is not recorded again, but is what was written before."""
    record, recorded = graphs.write_onnx, {}

    def write(graph: torch.nn.Module, images: torch.Tensor, dynamic: dict, names: list[str], file: Path):
        weights = [weight.reshape(-1).view(torch.uint8).numpy().tobytes() for weight in graph.state_dict().values()]
        settings = {name: value for name, value in vars(graph).items() if name[0] != "_"}
        of_model = (type(graph), graph.model.config.to_json_string(), graph.model.dtype, weights, settings)
        key = repr((*of_model, images.shape, images.dtype, dynamic, names))
        if key not in recorded:
            record(graph, images, dynamic, names, file)
            recorded[key] = file.read_bytes()
        file.write_bytes(recorded[key])

    with pytest.MonkeyPatch.context() as patch:
        for module in (graphs, export, feature_models):
            patch.setattr(module, "write_onnx", write)
        yield
