# SPDX-License-Identifier: Apache-2.0
"""The options of `dino export`."""

from dataclasses import dataclass
from typing import ClassVar

from ..data.options import IMAGES_HELP, ImageColumnOptions
from ..hub.loading import DTYPES, MODEL_HELP
from ..image_processing_dino import MAX_SIDE
from ..runtime.options import StrPath, option
from .outputs import output_names


TARGETS = ("onnx", "openvino", "torch")
MAX_BATCH = 2**12


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ImageColumnOptions):
    """
    An export of a model.

    Raises:
        ValueError: if a value cannot work, alone or with others.
    """

    summary: ClassVar[str] = "Exports a model as ONNX, for OpenVINO or by torch.export, and compares it with PyTorch."

    model: StrPath = option(MODEL_HELP, argument=True)
    output: StrPath = option("Folder to write; must not exist.", argument=True)
    to: str = option("onnx, openvino, or torch (a program of torch.export).", "onnx")
    outputs: str = option(
        "tokens, features, patches, projection, cls_attention, or the tokens of a layer as layer@9; several with "
        "commas.",
        "tokens,features",
    )
    dtype: str = option(
        "float32, bfloat16 or float16, of weights and arithmetic; what goes in and comes out is float32.", "float32"
    )
    batch_size: int | None = option("Images in each batch; by default any number.", None, minimum=1)
    image_size: int | None = option("Pixels a side of each image; by default any height and width.", None, minimum=1)
    uint8: bool = option("Take images of 8 bits, and normalise them in the graph.", False)
    quantize: str | None = option("int8, of the products with weights; what it costs is measured.", None)
    calibrate: StrPath | None = option(
        f"Images for --quantize: half of them give the ranges of activations, by the other half the cost is measured. "
        f"Without them ONNX takes the ranges of each batch, and the images are random. {IMAGES_HELP}",
        None,
    )

    def __post_init__(self):
        if self.to not in TARGETS:
            raise ValueError(f"unknown target {self.to!r}: allowed are {', '.join(TARGETS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: allowed are {', '.join(DTYPES)}")
        if self.to == "onnx" and self.dtype == "bfloat16":
            raise ValueError("ONNX Runtime does not compute in bfloat16 on a CPU: export to openvino, or in float16")
        for name, largest in (("image_size", MAX_SIDE), ("batch_size", MAX_BATCH)):
            if (getattr(self, name) or 1) > largest:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {largest}")
        output_names(self.outputs)
        if self.quantize not in (None, "int8"):
            raise ValueError(f"unknown quantization {self.quantize!r}: allowed is int8")
        if self.calibrate is not None and self.quantize is None:
            raise ValueError("--calibrate is for --quantize int8")
        if self.quantize and self.to == "torch":
            raise ValueError("only ONNX and OpenVINO quantize: export to one of them")
        if self.quantize and self.to == "onnx" and self.dtype != "float32":
            raise ValueError(f"ONNX Runtime quantizes float32, not {self.dtype}: leave out --dtype")
        if self.quantize and self.to == "openvino" and self.calibrate is None:
            raise ValueError("OpenVINO quantizes by images alone: name some with --calibrate")
