# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers' ViT, under the names in files and those of the installed release; no head."""

import torch

from conversion_scripts.checkpoint import Checkpoint, Export, rename
from conversion_scripts.sizes import check_state_dict, first, infer_config
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs in files
    ("backbone.cls_token", "embeddings.cls_token"),
    ("backbone.pos_embed", "embeddings.position_embeddings"),
    ("backbone.patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    ("backbone.blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
    ("backbone.blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    ("backbone.blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
    ("backbone.blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
    ("backbone.norm.{p}", "layernorm.{p}"),
]
# our fused weight holds theirs one below the other, in this order
QKV = "backbone.blocks.{i}.attn.qkv.{p}"
QUERY_KEY_VALUE = [f"encoder.layer.{{i}}.attention.attention.{part}.{{p}}" for part in ("query", "key", "value")]
INSTALLED = [  # theirs in files, and in the modules of transformers 5
    ("encoder.layer.{i}.attention.attention.query.{p}", "layers.{i}.attention.q_proj.{p}"),
    ("encoder.layer.{i}.attention.attention.key.{p}", "layers.{i}.attention.k_proj.{p}"),
    ("encoder.layer.{i}.attention.attention.value.{p}", "layers.{i}.attention.v_proj.{p}"),
    ("encoder.layer.{i}.attention.output.dense.{p}", "layers.{i}.attention.o_proj.{p}"),
    ("encoder.layer.{i}.intermediate.dense.{p}", "layers.{i}.mlp.fc1.{p}"),
    ("encoder.layer.{i}.output.dense.{p}", "layers.{i}.mlp.fc2.{p}"),
    ("encoder.layer.{i}.{p}", "layers.{i}.{p}"),
]
NOT_DINOS = ("pooler.", "classifier.")
# called the same in both configurations
SHARED_FIELDS = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "qkv_bias",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def matches(checkpoint: Checkpoint) -> bool:
    """By the folder's configuration."""
    return checkpoint.config is not None and checkpoint.config.get("model_type") == "vit"


def to_dino(
    checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
) -> tuple[DinoConfig, dict[str, torch.Tensor]]:
    """
    Args:
        which: unused; there is one network.
        num_heads: instead of the configuration's.

    Raises:
        ValueError: if it is not a whole ViT, or one that DINO has not.
    """
    from transformers import ViTConfig

    theirs = ViTConfig.from_dict(checkpoint.config)
    if theirs.hidden_act != "gelu":
        raise ValueError(f"hidden_act is {theirs.hidden_act!r}, but DINO's ViTs have 'gelu'")
    names = {name.removeprefix("vit."): tensor for name, tensor in checkpoint.contents.items()}
    kept = {name: tensor for name, tensor in names.items() if not name.startswith(NOT_DINOS)}
    checkpoint.notes += [f"left out: {first(name for name in names if name not in kept)}"] * (len(kept) < len(names))
    state_dict = fuse(rename(kept, INSTALLED, inverse=True))
    config = infer_config(
        state_dict,
        num_heads or theirs.num_attention_heads,
        layer_norm_eps=theirs.layer_norm_eps,
        hidden_dropout_prob=theirs.hidden_dropout_prob,
        attention_probs_dropout_prob=theirs.attention_probs_dropout_prob,
        position_interpolation="size",
    )
    check_state_dict(config, state_dict)
    return config, state_dict


def fuse(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names, with query, key and value in one."""
    state_dict = rename(theirs, KEYS, inverse=True)
    for name in [name for name in state_dict if ".attention.attention.query." in name]:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        missing = [part for part in names if part not in state_dict]
        if missing:
            raise ValueError(f"not a whole ViT: it lacks {first(missing)}")
        ours = rename({name: None}, [(QUERY_KEY_VALUE[0], QKV)])
        state_dict[next(iter(ours))] = torch.cat([state_dict.pop(part) for part in names])
    return state_dict


def reference(checkpoint: Checkpoint):
    """The checkpoint as transformers' own model: images -> features."""
    from transformers import ViTModel

    model = ViTModel.from_pretrained(checkpoint.source, add_pooling_layer=False).eval()
    return lambda images: model(images).last_hidden_state[:, 0]


def from_dino(config: DinoConfig, state_dict: dict[str, torch.Tensor]) -> Export:
    """
    A folder that `ViTModel.from_pretrained(folder, add_pooling_layer=False)` loads.

    Raises:
        ValueError: if it is not a ViT.
    """
    from transformers import ViTConfig

    if "backbone.patch_embed.proj.weight" not in state_dict:
        raise ValueError(f"transformers' ViT format is not for {config.backbone}")
    notes = [] if config.head_type is None else ["left out: the projection head, which transformers' ViT has not"]
    if config.position_interpolation != "size":
        notes.append(
            f"transformers' ViT resizes positions in its own way (position_interpolation is "
            f"{config.position_interpolation!r}): sizes other than {config.image_size} px differ a little"
        )
    theirs = ViTConfig(
        architectures=["ViTModel"],
        intermediate_size=int(config.hidden_size * config.mlp_ratio),
        **{name: getattr(config, name) for name in SHARED_FIELDS},
    )
    tensors = {}
    for name, tensor in state_dict.items():
        if ".attn.qkv." in name:
            for row, part in zip(QUERY_KEY_VALUE, tensor.chunk(3)):
                tensors |= rename({name: part}, [(QKV, row)])
        elif name.startswith("backbone."):
            tensors |= rename({name: tensor}, KEYS)
    return Export(tensors, theirs.to_diff_dict(), notes)
