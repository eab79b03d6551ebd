# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The kinds of features that users of DINO evaluate, from one forward pass.

As the original's evaluation: https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py#L120.
"""

from collections.abc import Sequence

import torch

from .configuration_dino import DinoConfig
from .modeling_dino import DinoModel


FEATURE_KINDS = ("cls", "patch_mean", "cls_patch_mean", "patches", "projection")


def check_features(config: DinoConfig, kind: str, last_blocks: int):
    """
    Raises:
        ValueError: if a model of this configuration has no such features.
    """
    if kind not in FEATURE_KINDS:
        raise ValueError(f"unknown features {kind!r}: allowed are {', '.join(FEATURE_KINDS)}")
    if not 1 <= last_blocks <= config.num_hidden_layers:
        raise ValueError(f"last_blocks={last_blocks} must be between 1 and {config.num_hidden_layers}")
    if kind == "projection" and config.head_type is None:
        raise ValueError("the model has no projection head (head_type is None): choose other features")
    if kind == "projection" and last_blocks > 1:
        raise ValueError("the projection is of the last block alone: leave out last_blocks")
    if not config.is_vit and (last_blocks > 1 or kind in ("patch_mean", "cls_patch_mean")):
        raise ValueError(f"{config.backbone} has cls (its global average pool), patches and projection features only")


def image_features(
    model: DinoModel, pixel_values: torch.Tensor, kinds: str | Sequence[str] = "cls", last_blocks: int = 1
) -> torch.Tensor | dict[str, torch.Tensor]:
    """
    Features of images, by one pass through the model.

    Args:
        pixel_values: (B, C, H, W).
        kinds: `"cls"`: CLS tokens, or a ResNet's global average pool; `"patch_mean"`: means of the patch tokens;
            `"cls_patch_mean"`: CLS tokens, and the mean of the last block's patch tokens; `"patches"`: patch tokens,
            or the cells of a ResNet's map; `"projection"`: the head's output.
        last_blocks: of how many last blocks (each normed), side by side.

    Returns:
        (B, dim), for patches (B, h * w, dim); of several kinds one each, by their names.

    Raises:
        ValueError: if the model has no such features.
    """
    if isinstance(kinds, str):
        return image_features(model, pixel_values, [kinds], last_blocks)[kinds]
    for kind in kinds:
        check_features(model.config, kind, last_blocks)
    of_backbone = _vit_features if model.config.is_vit else _resnet_features
    return of_backbone(model, pixel_values, kinds, last_blocks)


def _vit_features(
    model: DinoModel, pixel_values: torch.Tensor, kinds: Sequence[str], last_blocks: int
) -> dict[str, torch.Tensor]:
    if not {"cls", "projection"}.issuperset(kinds):
        layers = model.get_intermediate_layers(pixel_values, n=last_blocks, return_class_token=True)
    else:
        layers = [(None, cls) for cls in model.get_cls_tokens(pixel_values, n=last_blocks)]
    last_patches, last_cls = layers[-1]
    compute = {
        "cls": lambda: torch.cat([cls for _, cls in layers], dim=-1),
        "patch_mean": lambda: torch.cat([patches.mean(dim=1) for patches, _ in layers], dim=-1),
        "cls_patch_mean": lambda: torch.cat([*(cls for _, cls in layers), last_patches.mean(dim=1)], dim=-1),
        "patches": lambda: torch.cat([patches for patches, _ in layers], dim=-1),
        "projection": lambda: model.head(last_cls),
    }
    return {kind: compute[kind]() for kind in kinds}


def _resnet_features(
    model: DinoModel, pixel_values: torch.Tensor, kinds: Sequence[str], last_blocks: int
) -> dict[str, torch.Tensor]:
    feature_map = model.backbone(model.check_pixel_values(pixel_values))
    compute = {
        "cls": lambda: model.backbone.pool(feature_map),
        "patches": lambda: feature_map.flatten(2).transpose(1, 2),
        "projection": lambda: model.head(model.backbone.pool(feature_map)),
    }
    return {kind: compute[kind]() for kind in kinds}
