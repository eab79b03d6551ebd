# SPDX-License-Identifier: Apache-2.0
"""The golden models of DINOv2, DINOv3 and XCiT in our terms: configurations of their arguments, and their weights."""

import torch

from modeling_dino import DinoConfig, DinoModel


NAMES = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "ffn_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "layer_norm_eps",
    "init_values": "layerscale_value",
    "layerscale_init": "layerscale_value",
    "layer_scale_init_value": "layerscale_value",
    "eta": "layerscale_value",
    "num_register_tokens": "num_register_tokens",
    "n_storage_tokens": "num_register_tokens",
    "pos_embed_rope_base": "rope_theta",
    "pos_embed_rope_min_period": "rope_min_period",
    "pos_embed_rope_max_period": "rope_max_period",
    "pos_embed_rope_normalize_coords": "rope_coordinates",
    "pos_embed_rope_shift_coords": "pos_embed_shift",
    "pos_embed_rope_jitter_coords": "pos_embed_jitter",
    "pos_embed_rope_rescale_coords": "pos_embed_rescale",
    "untie_cls_and_patch_norms": "untie_cls_and_patch_norms",
    "untie_global_and_local_cls_norm": "untie_global_and_local_cls_norm",
    "drop_path_rate": "drop_path_rate",
    "cls_attn_layers": "num_class_attention_layers",
    "tokens_norm": "tokens_norm",
    "depths": "depths",
    "dims": "hidden_sizes",
}
INTERPOLATIONS = {(0.1, False): "dino", (0.0, False): "size", (0.0, True): "antialias"}


def config_of(arguments: dict, **overrides) -> DinoConfig:
    """The configuration of a golden model, from the arguments of the original's constructor."""
    values = {NAMES[name]: value for name, value in arguments.items() if name in NAMES}
    ffn = arguments.get("ffn_layer", "mlp")
    values |= {"use_swiglu_ffn": ffn.startswith("swiglu"), "head_type": None}
    if ffn.removeprefix("swiglu").isdecimal():
        values["swiglu_multiple"] = int(ffn.removeprefix("swiglu"))
    if "dims" in arguments:
        values |= {"backbone": "convnext_tiny", "image_size": 64}
    elif "cls_attn_layers" in arguments:
        values |= {"backbone": "xcit_tiny_12"}
    else:
        values |= {"backbone": "vit_tiny", "use_mask_token": True}
    if "interpolate_offset" in arguments:
        offset = arguments["interpolate_offset"], arguments["interpolate_antialias"]
        values["position_interpolation"] = INTERPOLATIONS[offset]
    if "norm_layer" in arguments:
        values |= {"use_rms_norm": arguments["norm_layer"] == "rmsnorm", "key_bias": not arguments["mask_k_bias"]}
        values["rope_dtype"] = {"fp32": "float32", "bf16": "bfloat16"}[arguments["pos_embed_rope_dtype"]]
    return DinoConfig(**{**values, **overrides})


def our_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of an original under our names: SwiGLU is in three parts, and the mask of the key bias is no buffer."""
    ours = {}
    for name, tensor in state_dict.items():
        if name.endswith("bias_mask") or name.startswith("norms."):
            continue
        if ".mlp.w12." in name:
            first, second = tensor.chunk(2)
            ours |= {name.replace("w12", "w1"): first.clone(), name.replace("w12", "w2"): second.clone()}
        else:
            ours[name.replace("storage_tokens", "register_tokens")] = tensor
    return ours


def golden_model(arguments: dict, state_dict: dict[str, torch.Tensor], **overrides) -> DinoModel:
    """A golden model in eval mode; all its weights must be there, and no others."""
    model = DinoModel(config_of(arguments, **overrides)).eval()
    model.backbone.load_state_dict(our_names(state_dict))
    return model
