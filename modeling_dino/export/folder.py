# SPDX-License-Identifier: Apache-2.0
"""Describes an exported model in the folder that holds it, and reads such a folder.

config.json, preprocessor_config.json    the model's own; transformers.js and optimum read them, too
onnx/model.onnx                          the graph, where these look for it (model_quantized.onnx in int8);
                                         or openvino/model.xml and .bin, or torch/model.pt2
export.json                              what goes in and comes out, and how it was compared
"""

import hashlib
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ..hub.loading import DTYPES, EXPORT_FILE
from ..runtime.json_files import read_json


FORMAT = "modeling-dino export 1"
FILES = {"onnx": "onnx/model.onnx", "openvino": "openvino/model.xml", "torch": "torch/model.pt2"}
QUANTIZED_ONNX = "onnx/model_quantized.onnx"


class ExportFacts(TypedDict):
    """Declares what `export.json` has."""

    format: str
    to: str
    file: str
    model: str
    model_fingerprint: str
    random_weights: NotRequired[bool]
    dtype: str
    quantized: dict[str, Any] | None
    batch_size: int | None
    image_size: int | None
    uint8: bool
    outputs: dict[str, str]
    largest_difference: float
    versions: dict[str, str]


def file_of(to: str, quantized: bool) -> str:
    """Returns where a graph lies in its folder."""
    return QUANTIZED_ONNX if quantized and to == "onnx" else FILES[to]


def read_export(folder: str) -> ExportFacts:
    """Reads what a folder says of its graph; raises ValueError if it is damaged, or the graph is missing."""
    path = Path(folder) / EXPORT_FILE
    facts = read_json(path, ExportFacts)
    checks = {
        "format": facts["format"] == FORMAT,
        "to": facts["to"] in FILES,
        "file": facts["file"] in (FILES.get(facts["to"]), file_of(facts["to"], True)),
        "dtype": facts["dtype"] in DTYPES,
    }
    for name, is_right in checks.items():
        if not is_right:
            raise ValueError(f"{path} is damaged: {name}={facts[name]!r} is not of a known export")
    if not (Path(folder) / facts["file"]).is_file():
        raise ValueError(f"{folder} lacks its graph, {facts['file']}: export the model again")
    return facts


def graph_fingerprint(folder: Path) -> str:
    """Computes a hash of the files of a graph."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def graph_size(folder: Path) -> int:
    """Returns the size of the files of a graph in bytes."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
