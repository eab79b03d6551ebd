# SPDX-License-Identifier: Apache-2.0
"""Runs exported graphs: by ONNX Runtime, by OpenVINO, or by PyTorch."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..runtime.extras import require
from .outputs import INPUT


GRAPH_ENGINES = ("onnxruntime", "openvino")  # that run what another process has exported
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # OpenVINO's names

EXPORTERS = ("onnx", "onnxscript")  # what a graph is made with

Graph = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # images (B, C, H, W) -> outputs by their names


def installed_engines() -> list[str]:
    """Returns the engines that are installed here, if graphs for them can be made."""
    can_export = all(map(find_spec, EXPORTERS))
    return [engine for engine in GRAPH_ENGINES if can_export and find_spec(engine)]


def open_graph(file: Path, engine: str, dtype: str = "float32", threads: int = 1, callers: int = 1) -> Graph:
    """
    Opens a graph, which several threads may call at a time.

    Args:
        file: an ONNX model, which both engines read, or one of OpenVINO (.xml).
        engine: onnxruntime or openvino.
        dtype: in which OpenVINO computes; ONNX Runtime computes as the graph says.
        threads: how many compute a batch.
        callers: how many threads call the graph at a time.

    Returns:
        a function of images that raises ValueError where the engine cannot compute them.

    Raises:
        ImportError: if the engine is not installed.
        ValueError: if it cannot read the file.
    """
    require(engine, "export")
    opened = _open_in_onnxruntime if engine == "onnxruntime" else _open_in_openvino
    run = _raising_value_errors(opened, engine)(file, dtype, threads, callers)
    return _raising_value_errors(run, engine)


def _raising_value_errors(function: Callable, engine: str) -> Callable:
    """Makes errors of an engine, whose classes are its own, a ValueError of one line."""

    def call(*arguments):
        try:
            return function(*arguments)
        except (OSError, MemoryError, ImportError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{engine} cannot run the model: {reason}") from error

    return call


def _open_in_onnxruntime(file: Path, dtype: str, threads: int, callers: int) -> Graph:
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors, which are raised, too
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = session.run(names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found)}

    return run


def _open_in_openvino(file: Path, dtype: str, threads: int, callers: int) -> Graph:
    openvino = require("openvino", "export")
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": threads * callers,
        "NUM_STREAMS": callers,
    }
    with own_signal_stack():
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    names, taken = [output.any_name for output in compiled.outputs], compiled.input(0).partial_shape
    of_thread = threading.local()

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        if not taken.compatible(openvino.PartialShape(list(images.shape))):  # which it would compute wrongly
            raise ValueError(f"images of shape {tuple(images.shape)}, but the graph takes {taken}")
        with own_signal_stack():
            if not hasattr(of_thread, "request"):
                of_thread.request = compiled.create_infer_request()
            found = of_thread.request.infer([images.numpy()])
        return {name: torch.from_numpy(np.array(found[i])) for i, name in enumerate(names)}

    return run


class SignalStack(ctypes.Structure):
    """Describes where a thread handles signals, as Linux's `stack_t`."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """
    Leaves a thread the stack on which it handles signals.

    On processors with AMX, OpenVINO gives it another one with each model, and that of an earlier model back when a
    model is gone, though it has been freed by then: the next signal, as that of a worker that ends, ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def open_program(file: Path) -> Graph:
    """Opens a program of torch.export; for files of one's own, as PyTorch reads them."""
    program = torch.export.load(file).module()

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return program(images)

    return run
