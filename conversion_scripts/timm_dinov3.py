# SPDX-License-Identifier: Apache-2.0
"""timm's ViTs of DINOv3: hub folders, and files of their state dicts; no head.

Their feature is the mean of the patches unless they are made with `global_pool="token"`, as folders that are written
say; ours is the CLS token. Models with `_qkvb` in their names have a bias of query and value, others have none.
"""

from conversion_scripts.checkpoint import Checkpoint, StateDict, join_tensors, rename, split_tensors
from conversion_scripts.checkpoint_format import (
    OF_DINOV3,
    PERIODS,
    QUERY_KEY_VALUE,
    VIT_OF_DINOV3,
    has_key_bias,
    loss_of_key_bias,
    loss_of_periods,
    with_all_biases,
)
from conversion_scripts.timm_folder import TimmFormat
from conversion_scripts.timm_models import VIT_ARGUMENTS
from modeling_dino.configuration_dino import VIT_SIZES, DinoConfig


KEYS = [  # ours, theirs
    ("backbone.register_tokens", "reg_token"),
    ("backbone.blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
    ("backbone.blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
    ("backbone.blocks.{i}.attn.query.bias", "blocks.{i}.attn.q_bias"),
    ("backbone.blocks.{i}.attn.value.bias", "blocks.{i}.attn.v_bias"),
    ("backbone.blocks.{i}.mlp.w1.{p}", "blocks.{i}.mlp.fc1_g.{p}"),
    ("backbone.blocks.{i}.mlp.w2.{p}", "blocks.{i}.mlp.fc1_x.{p}"),
    ("backbone.{p}", "{p}"),
]
SWIGLU = [("backbone.blocks.{i}.mlp.w3.{p}", "backbone.blocks.{i}.mlp.fc2.{p}")]  # the name that an MLP has
BIASES = tuple(f"{part}bias" for part in QUERY_KEY_VALUE)
# timm's names: those with an MLP, and those with SwiGLU
NAMES = {False: ("vit_small", "vit_base", "vit_large"), True: ("vit_small_plus", "vit_huge_plus", "vit_7b")}


class TimmDinov3(TimmFormat):
    license = "dinov3-license"
    families = ("dinov3",)
    needed = VIT_OF_DINOV3
    keys = KEYS
    prefixes = ("backbone.",)
    not_dinos = ("head.weight", "head.bias")
    classifiers = {"dinov3": "head."}
    arguments = {"global_pool": "token"}
    fixed = {"layer_norm_eps": 1e-5, "rope_dtype": "float32"}

    def fits(self, names: set[str]) -> bool:
        """Goes by layer scales of these names, and by the absence of learned positions."""
        return {"patch_embed.proj.weight", "blocks.0.gamma_1"} <= names and "pos_embed" not in names

    def settings_of(self, checkpoint: Checkpoint, state_dict: StateDict) -> dict:
        model_args = self.model_args_of(checkpoint)
        architecture = str((checkpoint.config or {}).get("architecture", ""))
        num_heads = model_args.get("num_heads") or next(
            (VIT_SIZES[name][2] for names in NAMES.values() for name in names if f"{name}_patch" in architecture), None
        )
        theta = float(model_args.get("rope_temperature", 100))
        return {
            "num_heads": num_heads,
            "rope_theta": theta,
            "key_bias": False,
            "pos_embed_rescale": 2.0,
            **OF_DINOV3,
        }

    def to_dino(
        self, checkpoint: Checkpoint, which: str = "teacher", num_heads: int | None = None
    ) -> tuple[DinoConfig, StateDict]:
        if self.model_args_of(checkpoint).get("global_pool") != "token":
            checkpoint.notes.append("the feature is the CLS token, where timm's own is the mean of the patches")
        return super().to_dino(checkpoint, which, num_heads)

    def to_our_names(self, theirs: StateDict) -> StateDict:
        ours = super().to_our_names(theirs)
        if "backbone.blocks.0.mlp.w1.weight" in ours:
            ours = rename(ours, SWIGLU, inverse=True)
        return join_tensors(with_all_biases(ours, QUERY_KEY_VALUE), ".attn.qkv.bias", BIASES)

    def to_their_names(self, ours: StateDict, config: DinoConfig) -> StateDict:
        theirs = split_tensors(ours, ".attn.qkv.bias", BIASES)
        theirs = {name: t for name, t in theirs.items() if name != PERIODS and not name.endswith(".attn.key.bias")}
        return super().to_their_names(rename(theirs, SWIGLU), config)

    def check_holds(self, config: DinoConfig, state_dict: StateDict):
        super().check_holds(config, state_dict)
        if config.key_bias and has_key_bias(state_dict):
            raise ValueError(f"the format of timm cannot hold a {config.backbone} of DINOv3 with a bias of the keys")

    def losses(self, config: DinoConfig, state_dict: StateDict) -> list[str]:
        library = self.library
        return [*loss_of_periods(config, state_dict, library), *loss_of_key_bias(config, state_dict, library)]

    def pack(self, config: DinoConfig, tensors: StateDict) -> Checkpoint:
        names = NAMES[config.use_swiglu_ffn]
        name = config.backbone if config.backbone in names else names[0]
        model_args = {theirs: getattr(config, ours) for theirs, ours in VIT_ARGUMENTS.items()}
        model_args |= {"init_values": config.layerscale_value, "rope_temperature": config.rope_theta}
        model_args["num_reg_tokens"] = config.num_register_tokens
        if config.use_swiglu_ffn:  # the half keeps the product from rounding down
            model_args["mlp_ratio"] = (config.feed_forward_width + 0.5) / config.hidden_size
            model_args["swiglu_align_to"] = config.swiglu_multiple
        has_own_name = config.qkv_bias and name != "vit_7b"
        return self.packed(f"{name}_patch16_dinov3{'_qkvb' * has_own_name}", model_args, config, tensors)
