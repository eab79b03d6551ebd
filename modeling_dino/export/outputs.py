# SPDX-License-Identifier: Apache-2.0
"""What an exported graph computes: named outputs of a model, from its pixel values or from images of 8 bits."""

import re

import torch
from torch import nn

from ..data.image_values import is_8_bit
from ..modeling_dino import DinoModel


INPUT = "pixel_values"
# what `--outputs` calls an output, and its name in the graph, which is that of `DinoModelOutput`
OUTPUTS = {
    "tokens": "last_hidden_state",
    "features": "pooler_output",
    "patches": "patch_tokens",
    "projection": "projection",
    "cls_attention": "cls_attention",
}
LAYER = re.compile(r"layer@(-?\d+)")


def output_names(outputs: str) -> list[str]:
    """Returns outputs that are named with commas between them. Raises ValueError if there is no such output."""
    names = list(dict.fromkeys(name.strip() for name in outputs.split(",")))
    for name in names:
        if name not in OUTPUTS and not LAYER.fullmatch(name):
            raise ValueError(f"unknown output {name!r}: allowed are {', '.join(OUTPUTS)} and layers, such as layer@9")
    return names


class ExportedModel(nn.Module):
    """
    A model as a function of tensors, whose outputs are a dictionary by the graph's names, in float32.

    Args:
        outputs: those of [`output_names`].
        transform: scales and normalises images of 8 bits, as `DinoModel.image_transform` has it; None for a graph that
            takes pixel values.

    Raises:
        ValueError: if the model does not have an output, or the transform takes no images of 8 bits.
    """

    def __init__(self, model: DinoModel, outputs: list[str], transform: dict | None = None):
        super().__init__()
        self.model, self.outputs, self.normalizes = model, outputs, transform is not None
        if "projection" in outputs and model.head is None:
            raise ValueError("the model has no projection head (head_type is None): leave out projection")
        if "cls_attention" in outputs:
            model.check_cls_attention()
        if transform is not None:
            self._remember_normalization(transform, model.config.num_channels)
        numbers = [(name, int(match[1])) for name in outputs if (match := LAYER.fullmatch(name))]
        # stage i is the output of layer i - 1
        self.stages = {name: model.resolve_layers([number])[0] + 1 for name, number in numbers}
        self.last_stage = model.config.num_hidden_layers

    def _remember_normalization(self, transform: dict, num_channels: int):
        """Keeps factor and bias of each channel, with which (B, C, H, W) of 8 bits become pixel values."""
        is_ours = transform.get("image_processor_type") == "BitImageProcessor"
        is_whole = is_ours and transform["do_rescale"] and transform["do_normalize"]
        if not is_whole or not is_8_bit(num_channels, transform["rescale_factor"]):
            raise ValueError("the model's image transform does not normalise images of 8 bits: leave out --uint8")
        mean, std = (
            torch.tensor(transform[name]).double().expand(num_channels) for name in ("image_mean", "image_std")
        )
        self.register_buffer("factor", (transform["rescale_factor"] / std).float().view(-1, 1, 1))
        self.register_buffer("bias", (mean / std).float().view(-1, 1, 1))

    def graph_names(self) -> list[str]:
        """Returns the names of the outputs in the graph, in order."""
        return [OUTPUTS.get(name, name.replace("@", "_").replace("-", "minus_")) for name in self.outputs]

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            pixel_values: (B, C, H, W), in float32, or in uint8 where the graph normalises.
        """
        if self.normalizes:
            pixel_values = pixel_values.float() * self.factor - self.bias
        pixel_values = self.model.check_pixel_values(pixel_values)
        if {"features", "projection"}.issuperset(self.outputs):  # the last block computes nothing but the CLS token
            found = {"features": self.model.get_features(pixel_values)}
        else:
            found = self._tokens(pixel_values)
        if "projection" in self.outputs:
            found["projection"] = self.model.head(found["features"])
        if "cls_attention" in self.outputs:
            found["cls_attention"] = self.model.get_cls_attention(pixel_values)
        return {name: found[output].float() for name, output in zip(self.graph_names(), self.outputs)}

    def _tokens(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes tokens and what is made of them, by one pass."""
        backbone = self.model.backbone
        stages = sorted({*self.stages.values(), self.last_stage})
        of_stages = dict(zip(stages, backbone.normed_stages(pixel_values, stages)))
        tokens = of_stages[self.last_stage]
        found = {"tokens": tokens, "features": backbone.pool(tokens), "patches": backbone.patch_tokens(tokens)}
        return found | {name: of_stages[stage] for name, stage in self.stages.items()}
