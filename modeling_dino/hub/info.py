# SPDX-License-Identifier: Apache-2.0
"""Computes the sizes of models from their configurations, without loading or making weights."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoModel, backbone_class
from ..runtime.options import takes_options
from .loading import load_config
from .options import InfoOptions


# heading -> the text of a cell
COLUMNS = {
    "model": "{name}",
    "backbone": "{backbone}",
    "px": "{image_size}",
    "feature": "{feature_dim}",
    "output": "{output_dim}",
    "backbone params": "{backbone_params:,}",
    "head params": "{head_params:,}",
    "total": "{total_params:,}",
    "trainable": "{trainable_params:,}",
    "weights MiB": "{mebibytes:.1f}",
    "GFLOPs/image": "{gigaflops:.2f}",
}


def model_sizes(name: str) -> dict[str, str | int | float]:
    """
    Computes the sizes of a preset, or of a model saved in a folder or on the hub.

    Returns:
        `get_model_info`, and `name`, `image_size`, `mebibytes` of the weights in the dtype they are saved in, and
        `gigaflops` of the backbone for one image.
    """
    config = load_config(name)
    with torch.device("meta"):
        model = DinoModel(config).to(config.dtype or torch.float32).eval()
    sizes = {"name": name, "image_size": config.image_size, **model.get_model_info()}
    sizes["mebibytes"] = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**20
    sizes["gigaflops"] = backbone_flops(config) / 1e9
    return sizes


def backbone_flops(config: DinoConfig) -> int:
    """
    Counts the floating-point operations of the backbone for one image; a multiply-add counts as two.

    All blocks of a transformer cost the same, so only models with one and with two of them are counted.
    """
    if config.has_stages:
        return count_flops(config)
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = 1
    of_one = count_flops(shallow)
    shallow.num_hidden_layers = 2
    return of_one + (config.num_hidden_layers - 1) * (count_flops(shallow) - of_one)


def count_flops(config: DinoConfig) -> int:
    """Counts the operations of a whole backbone, on the meta device, where they are not computed."""
    image = torch.empty(1, config.num_channels, config.image_size, config.image_size, device="meta")
    with torch.device("meta"):
        backbone = backbone_class(config)(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(image)
    return counter.get_total_flops()


@takes_options(InfoOptions, command="info")
def show_info(options: InfoOptions) -> str:
    """
    Returns:
        a table with a line for each model, names to the left and numbers to the right.

    Raises:
        ValueError, OSError: if there is no such model.
    """
    names = DinoConfig.presets() if options.model is None else [options.model]
    models = [{**sizes, "output_dim": sizes["output_dim"] or "-"} for sizes in map(model_sizes, names)]
    columns = []
    for i, (heading, cell) in enumerate(COLUMNS.items()):
        cells = [heading, *(cell.format_map(sizes) for sizes in models)]
        width = max(map(len, cells))
        columns.append([text.ljust(width) if i < 2 else text.rjust(width) for text in cells])
    return "\n".join("  ".join(row) for row in zip(*columns))
