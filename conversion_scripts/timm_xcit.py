# SPDX-License-Identifier: Apache-2.0
"""timm's XCiTs: hub folders, and files of their state dicts; no head. timm has no weights of DINO's for them."""

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, split_tensors
from conversion_scripts.checkpoint_format import QUERY_KEY_VALUE
from conversion_scripts.timm_folder import SIZES, TimmFormat
from modeling_dino.configuration_dino import DinoConfig


KEYS = [  # ours, theirs
    ("backbone.pos_embeder.{p}", "pos_embed.{p}"),
    ("backbone.cls_attn_blocks.{i}.attn.query.{p}", "cls_attn_blocks.{i}.attn.q.{p}"),
    ("backbone.cls_attn_blocks.{i}.attn.key.{p}", "cls_attn_blocks.{i}.attn.k.{p}"),
    ("backbone.cls_attn_blocks.{i}.attn.value.{p}", "cls_attn_blocks.{i}.attn.v.{p}"),
    ("backbone.{p}", "{p}"),
]
ARGUMENTS = {  # of `timm.create_model` -> of DinoConfig
    **SIZES,
    "cls_attn_layers": "num_class_attention_layers",
    "tokens_norm": "tokens_norm",
    "eta": "layerscale_value",
}


class TimmXcit(TimmFormat):
    families = ("xcit",)
    keys = KEYS
    not_dinos = ("head.weight", "head.bias")
    classifiers = {"xcit": "head."}
    fixed = {"layer_norm_eps": 1e-6}

    def fits(self, names: set[str]) -> bool:
        return {"patch_embed.proj.0.0.weight", "cls_attn_blocks.0.attn.q.weight"} <= names

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        """A folder tells by arguments or by the name whether class attention norms all tokens."""
        architecture = str((checkpoint.config or {}).get("architecture", ""))
        tokens_norm = {"tokens_norm": not architecture.startswith("xcit_nano")} if architecture else {}
        return {**tokens_norm, **{k: v for k, v in self.model_args_of(checkpoint).items() if k == "tokens_norm"}}

    def to_our_names(self, theirs: StateDict) -> StateDict:
        return join_tensors(super().to_our_names(theirs), ".attn.qkv.", QUERY_KEY_VALUE)

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        # attention of other blocks is in one piece
        of_cls = {name: tensor for name, tensor in ours.items() if ".cls_attn_blocks." in name}
        others = {name: tensor for name, tensor in ours.items() if name not in of_cls}
        return super().to_their_names({**others, **split_tensors(of_cls, ".attn.qkv.", QUERY_KEY_VALUE)}, config)

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        model_args = {theirs: getattr(config, ours) for theirs, ours in ARGUMENTS.items()}
        return self.packed(f"{config.backbone}_p{config.patch_size}_224", model_args, config, tensors)
