# SPDX-License-Identifier: Apache-2.0
"""Computes the kinds of features that users of DINO evaluate, by one forward pass for each scale of the images.
Facets of a block, such as `keys@9`, take a pass each up to that block.

They follow the original's evaluation: https://github.com/facebookresearch/dino/blob/7c446df/eval_linear.py#L120;
generalised means follow its eval_copy_detection.py, several scales `multi_scale` of its utils.py.

Where we deviate: generalised means are taken in float32 in every dtype (the fourth power of 1e-6 is 0 in half
precision); the mean over scales is not normalised, since those who compare features normalise them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import interpolate

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoModel, backbone_class


# kinds of features, and the outputs of an exported model that they are made of
MADE_OF = {
    "cls": {"features"},
    "patch_mean": {"patches"},
    "cls_patch_mean": {"features", "patches"},
    "gem": {"patches"},
    "cls_gem": {"features", "patches"},
    "patches": {"patches"},
    "projection": {"projection"},
}
FEATURE_KINDS = tuple(MADE_OF)
# the facets of a model by their names before @LAYER
FACETS = {"keys": "key", "queries": "query", "values": "value", "tokens": "token"}
ALLOWED = ", ".join([*FEATURE_KINDS, *(f"{name}@LAYER" for name in FACETS)])
GEM_P, GEM_MIN = 4.0, 1e-6  # https://github.com/facebookresearch/dino/blob/7c446df/eval_copy_detection.py


def feature_columns(kinds: str) -> dict[str, str]:
    """Returns the columns of features in a table, and the kind in each, of kinds with commas between them."""
    names = [kind.strip() for kind in kinds.split(",")]
    if len(names) == 1:
        return {"feature": names[0]}
    return {f"feature_{name.replace('@-', '_minus_').replace('@', '_')}": name for name in names}


def facet_of(kind: str) -> tuple[str, int] | None:
    """Returns facet and layer of a kind such as `keys@9`, as [`DinoModel.get_facets`] takes them; else None."""
    name, _, layer = kind.partition("@")
    is_number = layer.isascii() and layer.removeprefix("-").isdigit()
    return (FACETS[name], int(layer)) if name in FACETS and is_number else None


def is_known(kind: str) -> bool:
    """Returns whether there are features of a kind, in some model."""
    return kind in FEATURE_KINDS or facet_of(kind) is not None


def check_kind(kind: str):
    """Raises ValueError if no model has features of this kind."""
    if not is_known(kind):
        raise ValueError(f"unknown features {kind!r}: allowed are {ALLOWED}")


def is_of_patches(kind: str) -> bool:
    """Returns whether features have a vector for each patch, not one for the image."""
    return kind == "patches" or facet_of(kind) is not None


def check_features(
    config: DinoConfig, kind: str, last_blocks: int = 1, gem_p: float = GEM_P, scales: Sequence[float] = (1.0,)
):
    """Raises ValueError if a model of this configuration has no such features; facets are left to the model."""
    check_kind(kind)
    if not 1 <= last_blocks <= config.num_hidden_layers:
        raise ValueError(f"last_blocks={last_blocks} must be between 1 and {config.num_hidden_layers}")
    if not 0 < gem_p < math.inf:
        raise ValueError(f"gem_p={gem_p} must be greater than 0: 1 is the mean, 4 the original's")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales={list(scales)}: give one or more, each greater than 0")
    if is_of_patches(kind) and list(scales) != [1]:
        raise ValueError("patches differ in number from scale to scale: choose other features")
    if kind == "projection" and config.head_type is None:
        raise ValueError("the model has no projection head (head_type is None): choose other features")
    if kind == "projection" and last_blocks > 1:
        raise ValueError("the projection is of the last block alone: leave out last_blocks")
    if facet_of(kind) and last_blocks > 1:
        raise ValueError(f"{kind} features are of one block alone: leave out last_blocks")
    if last_blocks > 1 and config.has_stages and backbone_class(config).has_cls_token:
        raise ValueError(f"last_blocks={last_blocks} must be 1 for {config.backbone}, whose stages differ in width")
    if not backbone_class(config).has_cls_token and (last_blocks > 1 or kind in ("patch_mean", "cls_patch_mean")):
        raise ValueError(
            f"{config.backbone} has cls (its global average pool), gem, cls_gem, patches and projection features only"
        )


def image_features(
    model: DinoModel,
    pixel_values: torch.Tensor,
    kinds: str | Sequence[str] = "cls",
    last_blocks: int = 1,
    gem_p: float = GEM_P,
    scales: Sequence[float] = (1.0,),
) -> torch.Tensor | dict[str, torch.Tensor]:
    """
    Computes features of images, by one pass through the model for each scale and each facet.

    Args:
        pixel_values: (B, C, H, W).
        kinds: `"cls"`: CLS tokens, or a ResNet's global average pool; `"patch_mean"`: means of the patch tokens;
            `"cls_patch_mean"`: CLS tokens, and the mean of the last block's patch tokens; `"gem"` and `"cls_gem"`:
            the same with generalised means; `"patches"`: patch tokens, or the cells of a ResNet's map;
            `"projection"`: the head's output; `"keys@9"`, `"queries@9"`, `"values@9"`, `"tokens@-1"`: facets of the
            patches in a block, from 0 or negative from the end, with the heads side by side.
        last_blocks: how many last blocks' features (each normed) are put side by side.
        gem_p: exponent of the generalised mean, (mean of max(x, 1e-6)^p)^(1/p).
        scales: sizes to which the images are resized bilinearly, over which the mean is taken; the original's
            retrieval has 1, 1/√2 and 1/2.

    Returns:
        (B, dim), for patches and facets (B, h * w, dim); for several kinds a dictionary of them by their names.

    Raises:
        ValueError: if the model has no such features.
    """
    if isinstance(kinds, str):
        return image_features(model, pixel_values, [kinds], last_blocks, gem_p, scales)[kinds]
    for kind in kinds:
        check_features(model.config, kind, last_blocks, gem_p, scales)
    of_scales = [_features(model, _resized(pixel_values, scale), kinds, last_blocks, gem_p) for scale in scales]
    if len(scales) == 1:
        return of_scales[0]
    return {kind: torch.stack([features[kind] for features in of_scales]).mean(0) for kind in kinds}


def gem(tokens: torch.Tensor, p: float = GEM_P) -> torch.Tensor:
    """Returns generalised means over tokens, (B, N, D) -> (B, D); see https://arxiv.org/abs/1711.02512."""
    return tokens.float().clamp(min=GEM_MIN).pow(p).mean(dim=1).pow(1 / p).to(tokens.dtype)


def _resized(pixel_values: torch.Tensor, scale: float) -> torch.Tensor:
    return pixel_values if scale == 1 else interpolate(pixel_values, scale_factor=scale, mode="bilinear")


def _facet(model: DinoModel, pixel_values: torch.Tensor, kind: str) -> torch.Tensor:
    """Computes a facet of the patches, (B, h * w, D)."""
    return model.get_facets(pixel_values, *facet_of(kind), reshape=True).flatten(2).transpose(1, 2)


def _features(
    model: DinoModel, pixel_values: torch.Tensor, kinds: Sequence[str], last_blocks: int, gem_p: float
) -> dict[str, torch.Tensor]:
    backbone, stages = model.backbone, model.last_stages(last_blocks)
    pixel_values = model.check_pixel_values(pixel_values)
    others = [kind for kind in kinds if not facet_of(kind)]
    if not others:
        layers = [(None, None)]
    elif {"cls", "projection"}.issuperset(others):
        layers = [(None, pooled) for pooled in backbone.pooled_stages(pixel_values, stages)]
    else:
        outputs = backbone.normed_stages(pixel_values, stages)
        layers = [(backbone.patch_tokens(output), backbone.pool(output)) for output in outputs]
    found = combine_tokens(others, layers, model.head, gem_p)
    return {kind: found[kind] if kind in found else _facet(model, pixel_values, kind) for kind in kinds}


def combine_tokens(
    kinds: Sequence[str],
    layers: Sequence[tuple[torch.Tensor | None, torch.Tensor | None]],
    project: Callable[[torch.Tensor], torch.Tensor] | None,
    gem_p: float = GEM_P,
) -> dict[str, torch.Tensor]:
    """
    Makes kinds of features of what a model gives.

    Args:
        layers: patch tokens (B, h * w, D) and CLS token (B, D) of each of the last blocks, as far as they are needed.
        project: makes the projection of the last block's CLS token.
    """
    last_patches, last_cls = layers[-1]
    compute = {
        "cls": lambda: torch.cat([cls for _, cls in layers], dim=-1),
        "patch_mean": lambda: torch.cat([patches.mean(dim=1) for patches, _ in layers], dim=-1),
        "cls_patch_mean": lambda: torch.cat([*(cls for _, cls in layers), last_patches.mean(dim=1)], dim=-1),
        "gem": lambda: torch.cat([gem(patches, gem_p) for patches, _ in layers], dim=-1),
        "cls_gem": lambda: torch.cat([*(cls for _, cls in layers), gem(last_patches, gem_p)], dim=-1),
        "patches": lambda: torch.cat([patches for patches, _ in layers], dim=-1),
        "projection": lambda: project(last_cls),
    }
    return {kind: compute[kind]() for kind in kinds}
