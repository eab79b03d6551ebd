# SPDX-License-Identifier: Apache-2.0
"""Records what a model computes as a graph, and writes it in the format of an engine."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoModel
from ..runtime.extras import require
from .outputs import INPUT


AXES = {0: "batch", 2: "height", 3: "width"}
EXAMPLE_BATCH = 2
LEAST_CELLS = 4  # a side of the last map: a length of 1 would count as fixed


def usual_side(config: DinoConfig) -> int:
    """Returns the side of the images that a model is evaluated on, in pixels."""
    return config.evaluation_size or config.image_size


def example_shape(model: DinoModel, batch_size: int | None = None, side: int | None = None) -> tuple[int, ...]:
    """
    Returns the shape of images (B, C, H, W) that a graph is recorded on.

    Args:
        batch_size: where the graph takes no other.
        side: in pixels, where the graph takes only squares of it; other examples are not square.
    """
    least = model.backbone.min_image_size
    height = side or max(usual_side(model.config), LEAST_CELLS * least)
    width = side or height + (model.config.patch_size or least)
    return batch_size or EXAMPLE_BATCH, model.config.num_channels, height, width


def write_onnx(model: nn.Module, images: torch.Tensor, dynamic: dict[int, str], names: list[str], file: Path):
    """
    Writes an ONNX model by torch.export.

    Args:
        model: a function of images, (B, C, H, W), with named outputs.
        images: an example; where an axis is dynamic, its length does not matter.
        dynamic: those of [`AXES`] whose length may be any.
        names: of the outputs.
    """
    require("onnxscript", "export")
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (images,),
            dynamo=True,
            dynamic_shapes={INPUT: dynamic},
            input_names=[INPUT],
            output_names=names,
            verbose=False,
        )
        program.save(str(file))


def write_program(model: nn.Module, images: torch.Tensor, dynamic: dict[int, str], file: Path):
    """Writes a program of torch.export; arguments as for [`write_onnx`]."""
    shapes = {INPUT: dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)}
    with quiet(), torch.no_grad():
        torch.export.save(torch.export.export(model.eval(), (images,), dynamic_shapes=shapes), file)


def write_openvino(
    model: nn.Module,
    images: torch.Tensor,
    dynamic: dict[int, str],
    names: list[str],
    file: Path,
    compress: bool = False,
):
    """
    Writes a model of OpenVINO, an .xml and a .bin beside it, which it makes of an ONNX model in float32; arguments as
    for [`write_onnx`].

    Args:
        compress: whether to store weights in float16.
    """
    openvino = require("openvino", "export")
    with TemporaryDirectory(prefix="dino-") as folder:
        onnx_file = Path(folder) / "model.onnx"
        write_onnx(model, images, dynamic, names, onnx_file)
        openvino.save_model(openvino.Core().read_model(str(onnx_file)), str(file), compress_to_fp16=compress)


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back what exporters and quantizers print, warn of and log: remarks on their own code."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(level)
