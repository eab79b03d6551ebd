# SPDX-License-Identifier: Apache-2.0
"""Sizes of models, from their configuration alone: no weights are loaded or made."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoModel
from .loading import load_config


@dataclass(frozen=True)
class ModelSizes:
    """
    Args:
        memory_bytes: of the weights, in the dtype they are saved in.
        flops: of the backbone for one image of `image_size`; a multiply-add counts as two.
    """

    name: str
    backbone: str
    image_size: int
    feature_dim: int
    output_dim: int | None
    backbone_params: int
    head_params: int
    total_params: int
    trainable_params: int
    memory_bytes: int
    flops: int


def model_sizes(name: str) -> ModelSizes:
    """The sizes of a preset, or of a model saved in a folder or on the hub."""
    config = load_config(name)
    with torch.device("meta"):
        model = DinoModel(config).to(config.dtype or torch.float32).eval()
    info = model.get_model_info()
    memory = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return ModelSizes(
        name=name, image_size=config.image_size, memory_bytes=memory, flops=backbone_flops(model, config), **info
    )


def backbone_flops(model: DinoModel, config: DinoConfig) -> int:
    """Floating-point operations of the backbone for one image; a multiply-add counts as two."""
    image = torch.empty(1, config.num_channels, config.image_size, config.image_size, device="meta", dtype=model.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.backbone(image)
    return counter.get_total_flops()


COLUMNS = {
    "model": lambda sizes: sizes.name,
    "backbone": lambda sizes: sizes.backbone,
    "px": lambda sizes: f"{sizes.image_size}",
    "feature": lambda sizes: f"{sizes.feature_dim}",
    "output": lambda sizes: "-" if sizes.output_dim is None else f"{sizes.output_dim}",
    "backbone params": lambda sizes: f"{sizes.backbone_params:,}",
    "head params": lambda sizes: f"{sizes.head_params:,}",
    "total": lambda sizes: f"{sizes.total_params:,}",
    "trainable": lambda sizes: f"{sizes.trainable_params:,}",
    "weights MiB": lambda sizes: f"{sizes.memory_bytes / 2**20:.1f}",
    "GFLOPs/image": lambda sizes: f"{sizes.flops / 1e9:.2f}",
}


def info_table(names: Sequence[str]) -> str:
    """A line a model, under a line of headings; names to the left, numbers to the right."""
    models = [model_sizes(name) for name in names]
    columns = []
    for i, (heading, cell) in enumerate(COLUMNS.items()):
        cells = [heading, *map(cell, models)]
        width = max(map(len, cells))
        columns.append([text.ljust(width) if i < 2 else text.rjust(width) for text in cells])
    return "\n".join("  ".join(row) for row in zip(*columns))


__all__ = ["ModelSizes", "info_table", "model_sizes"]
