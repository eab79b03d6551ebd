# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers' DINOv2, without and with registers, under the names in files and those of modules; no head.

`Dinov2Model` or `Dinov2WithRegistersModel.from_pretrained(folder)` loads what is written.
"""

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, rename, split_tensors
from conversion_scripts.checkpoint_format import GATE_VALUE, OF_DINOV2, QUERY_KEY_VALUE, VIT_OF_DINO
from conversion_scripts.sizes import swiglu_width
from conversion_scripts.transformers_folder import TransformersFolder, as_floats
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs in files
    ("backbone.cls_token", "embeddings.cls_token"),
    ("backbone.pos_embed", "embeddings.position_embeddings"),
    ("backbone.register_tokens", "embeddings.register_tokens"),
    ("backbone.mask_token", "embeddings.mask_token"),
    ("backbone.patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    ("backbone.blocks.{i}.attn.query.{p}", "encoder.layer.{i}.attention.attention.query.{p}"),
    ("backbone.blocks.{i}.attn.key.{p}", "encoder.layer.{i}.attention.attention.key.{p}"),
    ("backbone.blocks.{i}.attn.value.{p}", "encoder.layer.{i}.attention.attention.value.{p}"),
    ("backbone.blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    ("backbone.blocks.{i}.ls1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"),
    ("backbone.blocks.{i}.ls2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"),
    ("backbone.blocks.{i}.mlp.w12.{p}", "encoder.layer.{i}.mlp.weights_in.{p}"),
    ("backbone.blocks.{i}.mlp.w3.{p}", "encoder.layer.{i}.mlp.weights_out.{p}"),
    ("backbone.blocks.{i}.{p}", "encoder.layer.{i}.{p}"),
    ("backbone.norm.{p}", "layernorm.{p}"),
]
INSTALLED = [  # theirs in files (but for the parts of SwiGLU), and in the modules of transformers 5
    ("encoder.layer.{i}.attention.attention.query.{p}", "encoder.layer.{i}.attention.q_proj.{p}"),
    ("encoder.layer.{i}.attention.attention.key.{p}", "encoder.layer.{i}.attention.k_proj.{p}"),
    ("encoder.layer.{i}.attention.attention.value.{p}", "encoder.layer.{i}.attention.v_proj.{p}"),
    ("encoder.layer.{i}.attention.output.dense.{p}", "encoder.layer.{i}.attention.o_proj.{p}"),
    ("encoder.layer.{i}.mlp.w1.{p}", "encoder.layer.{i}.mlp.gate_proj.{p}"),
    ("encoder.layer.{i}.mlp.w2.{p}", "encoder.layer.{i}.mlp.up_proj.{p}"),
    ("encoder.layer.{i}.mlp.weights_out.{p}", "encoder.layer.{i}.mlp.down_proj.{p}"),
]
# called the same in both configurations: those that only a configuration tells, and those that tensors tell, too
SETTINGS = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
SETTINGS += ("layerscale_value",)
SIZES = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
SIZES += ("qkv_bias", "use_swiglu_ffn")


class TransformersDinov2(TransformersFolder):
    library = "transformers' DINOv2"
    origin = "transformers' DINOv2"
    families = ("dinov2",)
    model_types = ("dinov2", "dinov2_with_registers")
    needed = VIT_OF_DINO
    keys = KEYS
    prefixes = ("dinov2.", "dinov2_with_registers.")
    not_dinos = ("classifier.",)
    no_place = ("backbone.local_cls_norm.",)
    classifiers = {"dinov2": "classifier."}
    classifier_features = "cls_patch_mean"

    def fixed_options(self, state_dict: StateDict) -> dict:
        return {"position_interpolation": "antialias" if "backbone.register_tokens" in state_dict else "size"}

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        theirs = self.their_config(checkpoint)
        settings = {name: getattr(theirs, name) for name in SETTINGS}
        return {"num_heads": theirs.num_attention_heads, **settings, **OF_DINOV2}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        ours = super().to_our_names(rename(theirs, INSTALLED, inverse=True))
        return join_tensors(split_tensors(ours, ".mlp.w12.", GATE_VALUE), ".attn.qkv.", QUERY_KEY_VALUE)

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        if config.num_register_tokens and "backbone.mask_token" not in ours:  # which their class always has
            ours = {**ours, "backbone.mask_token": torch.zeros_like(ours["backbone.cls_token"][0])}
        parts = split_tensors(ours, ".attn.qkv.", QUERY_KEY_VALUE)
        return super().to_their_names(join_tensors(parts, ".mlp.w12.", GATE_VALUE), config)

    def check_holds(self, config: DinoConfig, state_dict: StateDict):
        super().check_holds(config, state_dict)
        if config.layerscale_value is None:
            raise ValueError(f"the format of {self.library} cannot hold a {config.backbone} without layer scale")
        whole_ratio(config)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        from transformers import Dinov2Config, Dinov2WithRegistersConfig

        values = {name: getattr(config, name) for name in SIZES} | as_floats(config, {name: name for name in SETTINGS})
        if config.num_register_tokens:
            values |= {"num_register_tokens": config.num_register_tokens}
            theirs = Dinov2WithRegistersConfig(architectures=["Dinov2WithRegistersModel"], **values)
        else:
            values |= {"use_mask_token": config.use_mask_token}
            theirs = Dinov2Config(architectures=["Dinov2Model"], **values)
        theirs.mlp_ratio = whole_ratio(config)
        return Checkpoint(tensors, theirs.to_diff_dict())


def whole_ratio(config: DinoConfig) -> int:
    """Returns the whole number that gives the width of the feed-forward network; raises ValueError if none does."""
    width = config.feed_forward_width
    for ratio in range(1, width // config.hidden_size * 2 + 2):
        theirs = swiglu_width(config.hidden_size, ratio, 8) if config.use_swiglu_ffn else config.hidden_size * ratio
        if theirs == width:
            return ratio
    raise ValueError(
        f"the format of transformers' DINOv2 cannot hold a feed-forward network {width} wide: its mlp_ratio must be "
        "whole"
    )
