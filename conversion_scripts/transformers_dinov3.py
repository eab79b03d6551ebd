# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers' ViTs of DINOv3, under the names in files and those of modules; no head.

`DINOv3ViTModel.from_pretrained(folder)` loads what is written.
"""

import torch

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, rename, split_tensors
from conversion_scripts.checkpoint_format import (
    OF_DINOV3,
    OF_TRAINING,
    PERIODS,
    QUERY_KEY_VALUE,
    VIT_OF_DINOV3,
    loss_of_key_bias,
    loss_of_periods,
    with_all_biases,
)
from conversion_scripts.transformers_folder import TransformersFolder, as_floats
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs in files
    ("backbone.cls_token", "embeddings.cls_token"),
    ("backbone.register_tokens", "embeddings.register_tokens"),
    ("backbone.mask_token", "embeddings.mask_token"),
    ("backbone.patch_embed.proj.{p}", "embeddings.patch_embeddings.{p}"),
    ("backbone.blocks.{i}.attn.query.{p}", "layer.{i}.attention.q_proj.{p}"),
    ("backbone.blocks.{i}.attn.key.{p}", "layer.{i}.attention.k_proj.{p}"),
    ("backbone.blocks.{i}.attn.value.{p}", "layer.{i}.attention.v_proj.{p}"),
    ("backbone.blocks.{i}.attn.proj.{p}", "layer.{i}.attention.o_proj.{p}"),
    ("backbone.blocks.{i}.ls1.gamma", "layer.{i}.layer_scale1.lambda1"),
    ("backbone.blocks.{i}.ls2.gamma", "layer.{i}.layer_scale2.lambda1"),
    ("backbone.blocks.{i}.{p}", "layer.{i}.{p}"),
    ("backbone.norm.{p}", "norm.{p}"),
]
# the feed-forward network, of which either kind has two names of the other
MLP = [
    ("backbone.blocks.{i}.mlp.fc1.{p}", "backbone.blocks.{i}.mlp.up_proj.{p}"),
    ("backbone.blocks.{i}.mlp.fc2.{p}", "backbone.blocks.{i}.mlp.down_proj.{p}"),
]
SWIGLU = [
    ("backbone.blocks.{i}.mlp.w1.{p}", "backbone.blocks.{i}.mlp.gate_proj.{p}"),
    ("backbone.blocks.{i}.mlp.w2.{p}", "backbone.blocks.{i}.mlp.up_proj.{p}"),
    ("backbone.blocks.{i}.mlp.w3.{p}", "backbone.blocks.{i}.mlp.down_proj.{p}"),
]
INSTALLED = [("layer.{i}.{p}", "model.layer.{i}.{p}")]  # theirs in files, and in the modules of transformers 5
OPTIONS = {  # ours, theirs
    "layer_norm_eps": "layer_norm_eps",
    "attention_probs_dropout_prob": "attention_dropout",
    "drop_path_rate": "drop_path_rate",
    "layerscale_value": "layerscale_value",
    "rope_theta": "rope_theta",
    "pos_embed_shift": "pos_embed_shift",
    "pos_embed_jitter": "pos_embed_jitter",
    "pos_embed_rescale": "pos_embed_rescale",
}
SIZES = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
SIZES += ("num_register_tokens",)


class TransformersDinov3(TransformersFolder):
    library = "transformers' DINOv3"
    origin = "transformers' DINOv3"
    license = "dinov3-license"
    families = ("dinov3",)
    model_types = ("dinov3_vit",)
    needed = VIT_OF_DINOV3
    keys = KEYS
    no_place = OF_TRAINING[1:]
    fixed = {"rope_dtype": "float32"}

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        theirs = self.their_config(checkpoint)
        settings = {ours: getattr(theirs, name) for ours, name in OPTIONS.items()}
        heads = {"num_heads": theirs.num_attention_heads, "key_bias": theirs.key_bias}
        return {**settings, "image_size": theirs.image_size, **heads, **OF_DINOV3}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        ours = super().to_our_names(rename(theirs, INSTALLED, inverse=True))
        is_swiglu = any(".mlp.gate_proj." in name for name in ours)
        ours = rename(ours, SWIGLU if is_swiglu else MLP, inverse=True)
        if "backbone.mask_token" in ours:
            ours["backbone.mask_token"] = ours["backbone.mask_token"].flatten(0, 1)  # (1, 1, D) -> (1, D)
        registers = ours.get("backbone.register_tokens")
        if registers is not None and not registers.numel():
            del ours["backbone.register_tokens"]
        return join_tensors(with_all_biases(ours, QUERY_KEY_VALUE), ".attn.qkv.", QUERY_KEY_VALUE)

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        tensors = split_tensors(ours, ".attn.qkv.", QUERY_KEY_VALUE)
        del tensors[PERIODS]
        if not config.key_bias:
            tensors = {name: t for name, t in tensors.items() if not name.endswith(".attn.key.bias")}
        cls_token = tensors["backbone.cls_token"]
        mask_token = tensors.get("backbone.mask_token", torch.zeros_like(cls_token))
        tensors["backbone.mask_token"] = mask_token.reshape_as(cls_token)
        tensors.setdefault("backbone.register_tokens", cls_token[:, :0])
        return super().to_their_names(rename(tensors, SWIGLU if config.use_swiglu_ffn else MLP), config)

    def check_holds(self, config: DinoConfig, state_dict: StateDict):
        super().check_holds(config, state_dict)
        if config.layerscale_value is None:
            raise ValueError(f"the format of {self.library} cannot hold a {config.backbone} without layer scale")

    def losses(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        library = self.library
        return [*loss_of_periods(config, state_dict, library), *loss_of_key_bias(config, state_dict, library)]

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        from transformers import DINOv3ViTConfig

        theirs = DINOv3ViTConfig(
            architectures=["DINOv3ViTModel"],
            intermediate_size=config.feed_forward_width,
            use_gated_mlp=config.use_swiglu_ffn,
            hidden_act="silu" if config.use_swiglu_ffn else "gelu",
            query_bias=config.qkv_bias,
            key_bias=config.qkv_bias and config.key_bias,
            value_bias=config.qkv_bias,
            **{name: getattr(config, name) for name in SIZES},
            **as_floats(config, OPTIONS),
        )
        return Checkpoint(tensors, theirs.to_diff_dict())
