# SPDX-License-Identifier: Apache-2.0
"""Records what a model computes as a graph, and writes it in the format of an engine."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ..runtime.extras import require
from .outputs import INPUT


AXES = {0: "batch", 2: "height", 3: "width"}


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
    with _quiet(), torch.no_grad():
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
    with _quiet(), torch.no_grad():
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
def _quiet() -> Iterator[None]:
    """Holds back what the exporters print and log: remarks on their own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
