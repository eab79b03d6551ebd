# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers' ViT, under the names in files and those of the installed release; no head.

`ViTModel.from_pretrained(folder, add_pooling_layer=False)` loads what is written.
"""

from collections.abc import Callable

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, rename, split_tensors
from conversion_scripts.checkpoint_format import QUERY_KEY_VALUE, VIT_OF_DINO
from conversion_scripts.transformers_folder import TransformersFolder
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs in files
    ("backbone.cls_token", "embeddings.cls_token"),
    ("backbone.pos_embed", "embeddings.position_embeddings"),
    ("backbone.patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    ("backbone.blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
    ("backbone.blocks.{i}.attn.query.{p}", "encoder.layer.{i}.attention.attention.query.{p}"),
    ("backbone.blocks.{i}.attn.key.{p}", "encoder.layer.{i}.attention.attention.key.{p}"),
    ("backbone.blocks.{i}.attn.value.{p}", "encoder.layer.{i}.attention.attention.value.{p}"),
    ("backbone.blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    ("backbone.blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
    ("backbone.blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
    ("backbone.norm.{p}", "layernorm.{p}"),
]
INSTALLED = [  # theirs in files, and in the modules of transformers 5
    ("encoder.layer.{i}.attention.attention.query.{p}", "layers.{i}.attention.q_proj.{p}"),
    ("encoder.layer.{i}.attention.attention.key.{p}", "layers.{i}.attention.k_proj.{p}"),
    ("encoder.layer.{i}.attention.attention.value.{p}", "layers.{i}.attention.v_proj.{p}"),
    ("encoder.layer.{i}.attention.output.dense.{p}", "layers.{i}.attention.o_proj.{p}"),
    ("encoder.layer.{i}.intermediate.dense.{p}", "layers.{i}.mlp.fc1.{p}"),
    ("encoder.layer.{i}.output.dense.{p}", "layers.{i}.mlp.fc2.{p}"),
    ("encoder.layer.{i}.{p}", "layers.{i}.{p}"),
]
# called the same in both configurations: those that only a configuration tells, and those that tensors tell, too
SETTINGS = ("num_attention_heads", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
SIZES = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "qkv_bias")


class TransformersViT(TransformersFolder):
    library = "transformers' ViT"
    origin = "transformers' ViT"
    families = ("vit",)
    model_types = ("vit",)
    needed = VIT_OF_DINO
    keys = KEYS
    prefixes = ("vit.",)
    not_dinos = ("pooler.", "classifier.")
    classifiers = {"vit": "classifier."}
    fixed = {"position_interpolation": "size"}

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        theirs = self.their_config(checkpoint)
        return {"num_heads": theirs.num_attention_heads} | {name: getattr(theirs, name) for name in SETTINGS[1:]}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        ours = super().to_our_names(rename(theirs, INSTALLED, inverse=True))
        return join_tensors(ours, ".attn.qkv.", QUERY_KEY_VALUE)

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        return super().to_their_names(split_tensors(ours, ".attn.qkv.", QUERY_KEY_VALUE), config)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        from transformers import ViTConfig

        theirs = ViTConfig(
            architectures=["ViTModel"],
            intermediate_size=int(config.hidden_size * config.mlp_ratio),
            **{name: getattr(config, name) for name in (*SIZES, *SETTINGS)},
        )
        return Checkpoint(tensors, theirs.to_diff_dict())

    def reference(self, checkpoint: Checkpoint, config: DinoConfig) -> Callable[[torch.Tensor], torch.Tensor]:
        from transformers import ViTModel

        model = ViTModel.from_pretrained(checkpoint.source, add_pooling_layer=False).eval()
        return lambda images: model(images).last_hidden_state[:, 0]
