import inspect
import json
import math
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tiny_config
from transformers import AutoConfig

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.image_processing_dino import image_processor_config


@pytest.mark.parametrize("name", ["vit_small", "ViT-Small", "deit_small", "DeiT-small", "VIT_SMALL"])
def test_spellings_of_a_backbone_are_stored_as_one(name):
    assert DinoConfig(backbone=name).backbone == "vit_small"


@pytest.mark.parametrize("name", ["resnet50", "ResNet-50", "resnet_50"])
def test_spellings_of_a_resnet_are_stored_as_one(name):
    assert DinoConfig(backbone=name).backbone == "resnet50"


@pytest.mark.parametrize(
    ("backbone", "hidden_size", "layers", "heads"),
    [
        ("vit_tiny", 192, 12, 3),
        ("vit_small", 384, 12, 6),
        ("vit_base", 768, 12, 12),
        ("vit_large", 1024, 24, 16),
        ("vit_giant", 1536, 40, 24),
        ("vit_7b", 4096, 40, 32),
        ("xcit_small_12", 384, 12, 8),
        ("xcit_medium_24", 512, 24, 8),
    ],
)
def test_the_name_of_a_vit_fixes_its_sizes(backbone, hidden_size, layers, heads):
    config = DinoConfig(backbone=backbone)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (hidden_size, layers, heads)
    assert not hasattr(config, "depths")


@pytest.mark.parametrize(
    ("backbone", "hidden_size", "depths"),
    [
        ("resnet18", 512, [2, 2, 2, 2]),
        ("resnet34", 512, [3, 4, 6, 3]),
        ("resnet50", 2048, [3, 4, 6, 3]),
        ("resnet101", 2048, [3, 4, 23, 3]),
        ("resnet152", 2048, [3, 8, 36, 3]),
    ],
)
def test_the_name_of_a_resnet_fixes_its_sizes(backbone, hidden_size, depths):
    config = DinoConfig(backbone=backbone)
    assert (config.hidden_size, config.depths) == (hidden_size, depths)
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize(
    ("backbone", "width"),
    [("vit_small", 1536), ("vit_small_plus", 1536), ("vit_huge_plus", 5120), ("vit_giant", 4096), ("vit_7b", 8192)],
)
def test_the_name_of_a_vit_fixes_its_feed_forward_network(backbone, width):
    config = DinoConfig(backbone=backbone)
    assert config.feed_forward_width == width
    assert config.use_swiglu_ffn == (backbone != "vit_small")
    plain = DinoConfig(backbone=backbone, use_swiglu_ffn=False, mlp_ratio=2)
    assert plain.feed_forward_width == 2 * plain.hidden_size


def test_sizes_can_be_overridden_and_survive_saving(tmp_path, family):
    config = tiny_config(family, out_features=["stage1", "stage3"])
    config.save_pretrained(tmp_path)
    for loaded in (DinoConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is DinoConfig
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert loaded.out_features == ["stage1", "stage3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vit_smal"}, "unknown backbone 'vit_smal': did you mean vit_small"),
        ({"backbone": "resnet51"}, "did you mean resnet50"),
        ({"backbone": "swin"}, "allowed are vit_tiny, vit_small"),
        (
            {"hidden_size": 100, "num_attention_heads": 3},
            "hidden_size=100 must be a multiple of num_attention_heads=3",
        ),
        ({"patch_size": 0}, "patch_size=0 must be between 1 and image_size=224"),
        ({"image_size": 8}, "patch_size=16 must be between 1 and image_size=8"),
        ({"num_channels": 0}, "num_channels=0 must be greater than 0"),
        ({"projection_dim": -1}, "projection_dim=-1 must be greater than 0"),
        ({"head_num_layers": 0}, "head_num_layers=0 must be greater than 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and less than 1"),
        ({"head_type": "mlp"}, "head_type='mlp' is not one of 'dino', 'simple', None"),
        ({"position_interpolation": "bilinear"}, "is not one of 'dino', 'size', 'antialias'"),
        ({"resnet_stem": "small"}, "resnet_stem='small' is not one of 'auto', 'imagenet', 'cifar'"),
        ({"depths": [1, 1]}, "depths is for ResNets and ConvNeXts; set num_hidden_layers for vit_small"),
        ({"hidden_sizes": [8, 8]}, "hidden_sizes is for ConvNeXts; set hidden_size for vit_small"),
        ({"backbone": "resnet18", "hidden_sizes": [8]}, "hidden_sizes is for ConvNeXts; set hidden_size for resnet"),
        (
            {"backbone": "resnet18", "num_register_tokens": 4},
            "num_register_tokens=4 is for ViTs; leave it out for res",
        ),
        ({"tokens_norm": False}, "tokens_norm=False is for XCiTs; leave it out for vit_small"),
        ({"pos_embed_jitter": 2.0}, "pos_embed_jitter=2.0 is for rotary positions (rope_theta); leave it out"),
        ({"backbone": "resnet18", "rope_dtype": "float64"}, "rope_dtype='float64' is for rotary positions"),
        ({"num_register_tokens": -1}, "num_register_tokens=-1 must be between 0 and 4096"),
        ({"rope_min_period": 1.0}, "rotary positions need rope_theta, or rope_min_period and rope_max_period"),
        ({"rope_theta": 100.0, "rope_max_period": 2.0}, "rotary positions need rope_theta, or rope_min_period and"),
        ({"rope_theta": 0}, "rope_theta=0 must be greater than 0"),
        ({"rope_theta": 100.0, "hidden_size": 18}, "hidden_size=18 must be a multiple of 4 * num_attention_heads=24"),
        ({"rope_coordinates": "mean"}, "rope_coordinates='mean' is not one of 'separate', 'max', 'min'"),
        ({"rope_dtype": "int8"}, "rope_dtype='int8' is not one of 'float16'"),
        ({"layerscale_value": math.nan}, "layerscale_value=nan must be a number up to"),
        ({"pos_embed_jitter": 0.5}, "pos_embed_jitter=0.5 must be at least 1, a factor"),
        ({"backbone": "xcit_small_12", "use_swiglu_ffn": True}, "use_swiglu_ffn=True is for ViTs; leave it out for"),
        ({"channel_means": [0.5]}, "channel_means=[0.5] must be 3 numbers, one for each channel"),
        ({"image_resize": "whole"}, "image_resize='whole' is not one of 'crop', 'square'"),
        ({"patch_projection_dim": 0}, "patch_projection_dim=0 must be greater than 0"),
        ({"backbone": "xcit_small_12", "patch_size": 14}, "patch_size=14 must be 8 or 16, and hidden_size=384"),
        ({"backbone": "convnext_tiny", "depths": [1, 1]}, "hidden_sizes=[96, 192, 384, 768] must be 2 numbers"),
        ({"backbone": "convnext_tiny", "classifier_last_blocks": 2}, "must be 1 for convnext_tiny"),
        ({"backbone": "resnet18", "depths": [1, 0]}, "must be positive integers"),
        ({"backbone": "resnet18", "num_hidden_layers": 3}, "num_hidden_layers=3 must be 4"),
        ({"backbone": "resnet50", "hidden_size": 100}, "hidden_size=100 must be a multiple of 32"),
        ({"classifier_features": "patches"}, "classifier_features='patches' is not one of 'cls', 'cls_patch_mean'"),
        ({"classifier_last_blocks": 13}, "classifier_last_blocks=13 must be between 1 and 12"),
        ({"backbone": "resnet18", "classifier_last_blocks": 2}, "must be 'cls' and 1 for resnet18"),
        ({"backbone": "resnet18", "classifier_features": "cls_patch_mean"}, "must be 'cls' and 1 for resnet18"),
        ({"patchsize": 8}, "unknown argument 'patchsize': did you mean 'patch_size'"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DinoConfig(**arguments)
    assert "\n" not in str(error.value)


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(Exception, match="patch_size"):
        DinoConfig(patch_size="16")


def test_a_configuration_made_wrong_afterwards_is_not_saved(tmp_path):
    config = tiny_config()
    config.num_attention_heads = 5
    with pytest.raises(Exception, match="num_attention_heads=5"):
        config.save_pretrained(tmp_path)


V2_SIZES = ("small", "base", "large", "giant")
V3_SIZES = {"s16": "small", "s16plus": "small_plus", "b16": "base", "l16": "large", "l16_sat493m": "large"}
V3_SIZES |= {"h16plus": "huge_plus", "7b16": "7b", "7b16_sat493m": "7b"}
CONVNEXT_SIZES = ("tiny", "small", "base", "large")
PRESETS = {
    "dino_vits16": ("vit_small", 16, 224, 65536),
    "dino_vits8": ("vit_small", 8, 224, 65536),
    "dino_vitb16": ("vit_base", 16, 224, 65536),
    "dino_vitb8": ("vit_base", 8, 224, 65536),
    "dino_resnet50": ("resnet50", None, 224, 65536),
    "imagenet_vit_base": ("vit_base", 16, 224, 65536),
    "imagenet_resnet50": ("resnet50", None, 224, 65536),
    "cifar10_resnet18": ("resnet18", None, 32, 8192),
    "cifar10_vit_small": ("vit_small", 8, 32, 8192),
    "vit_tiny": ("vit_tiny", 16, 224, 65536),
    "vit_large": ("vit_large", 16, 224, 65536),
    "resnet34": ("resnet34", None, 224, 65536),
    "resnet101": ("resnet101", None, 224, 65536),
    "resnet152": ("resnet152", None, 224, 65536),
    **{f"dinov2_vit{size[0]}14{end}": (f"vit_{size}", 14, 518, 65536) for size in V2_SIZES for end in ("", "_reg")},
    **{f"dinov3_vit{name}": (f"vit_{size}", 16, 224, 65536) for name, size in V3_SIZES.items()},
    **{f"dinov3_convnext_{size}": (f"convnext_{size}", None, 224, 65536) for size in CONVNEXT_SIZES},
    **{
        f"dino_xcit_{size}_p{p}": (f"xcit_{size}", p, 224, 65536)
        for size in ("small_12", "medium_24")
        for p in (8, 16)
    },
}


def test_presets_are_those_promised():
    assert DinoConfig.presets() == sorted(PRESETS)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset(name):
    backbone, patch_size, image_size, projection_dim = PRESETS[name]
    config = DinoConfig.from_preset(name)
    assert (config.backbone, config.image_size, config.projection_dim) == (backbone, image_size, projection_dim)
    if not hasattr(config, "depths"):
        assert config.patch_size == patch_size
    else:
        assert config.uses_cifar_stem == name.startswith("cifar")
    assert "published" not in config.to_dict()


LATER_PRESETS = [name for name in sorted(PRESETS) if name.startswith(("dinov2", "dinov3", "dino_xcit"))]


@pytest.mark.parametrize("name", LATER_PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = DinoModel(DinoConfig.from_preset(name, head_type=None))
    assert model.num_parameters() == DinoConfig.published(name)["parameters"]


def test_presets_differ_as_the_families_do():
    plain, registers = (DinoConfig.from_preset(f"dinov2_vitb14{end}") for end in ("", "_reg"))
    assert (plain.position_interpolation, registers.position_interpolation) == ("dino", "antialias")
    assert (plain.num_register_tokens, registers.num_register_tokens) == (0, 4)
    assert DinoConfig.published("dinov2_vitb14_reg")["imagenet_linear_top1"] == 84.6
    v3, satellite = (DinoConfig.from_preset(f"dinov3_vitl16{end}") for end in ("", "_sat493m"))
    assert (v3.rope_theta, v3.key_bias, v3.layer_norm_eps, v3.num_register_tokens) == (100, False, 1e-5, 4)
    assert image_processor_config(v3)["size"] == {"height": 224, "width": 224}
    assert image_processor_config(satellite)["image_mean"] == [0.430, 0.411, 0.296]
    assert image_processor_config(plain)["size"] == {"shortest_edge": 256}
    assert image_processor_config(plain)["crop_size"] == {"height": 224, "width": 224}
    licenses = {name: DinoConfig.published(name)["license"] for name in LATER_PRESETS}
    for name, license in licenses.items():
        assert license == ("dinov3-license" if name.startswith("dinov3") else "apache-2.0")


def test_presets_know_what_was_published():
    assert DinoConfig.published("dino_vitb8")["imagenet_linear_top1"] == 80.1
    assert DinoConfig.published("vit_tiny") is None
    resnet = DinoConfig.from_preset("dino_resnet50")
    assert (resnet.head_num_layers, resnet.head_hidden_dim) == (2, 4096)


def test_a_preset_takes_overrides_and_an_unknown_one_is_refused():
    assert DinoConfig.from_preset("dino_vits16", head_type=None).head_type is None
    with pytest.raises(ValueError, match="unknown preset 'dino_vits15': did you mean dino_vits16"):
        DinoConfig.from_preset("dino_vits15")


def test_config_json_reads_as_written(tmp_path):
    tiny_config("resnet").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "dino"
    assert written["depths"] == [1, 2, 1, 1]


def test_transformers_own_tests_find_the_year():
    """Without this line `test_can_init_all_missing_weights` of the common tests is skipped in silence."""
    with open(inspect.getfile(DinoConfig), encoding="utf-8") as file:
        assert int(re.search(r"^# Copyright (\d{4})", file.read(), re.MULTILINE)[1]) >= 2023


# Configurations from outside


DEEP = json.loads("[" * 300 + "]" * 300)


def loaded(folder, **values) -> DinoConfig:
    """A configuration that was saved, and then changed by somebody."""
    tiny_config().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return DinoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers=100000 must be at most 256"),
        ({"num_labels": 10**12}, "num_labels=1000000000000 must be a whole number from 1 to 1000000"),
        ({"hidden_size": 2**40}, "hidden_size=1099511627776 must be at most 65536"),
        ({"projection_dim": 10**12}, "projection_dim=1000000000000 must be at most"),
        ({"head_num_layers": 10**6}, "head_num_layers=1000000 must be at most 64"),
        ({"image_size": 10**12}, "image_size=1000000000000 must be at most 16384"),
        ({"mlp_ratio": 1e300}, "mlp_ratio=1e\\+300 must be at most 1024"),
        ({"mlp_ratio": 1e-9}, "mlp_ratio=1e-09 must be at least 1 / 32"),
        ({"mlp_ratio": math.nan}, "mlp_ratio=nan must be at most"),
        ({"backbone": "resnet18", "depths": [10**9] * 4}, "depths=.* must be positive integers"),
        ({"backbone": "resnet18", "depths": [1] * 50}, "at most 8 stages"),
        ({"backbone": "resnet18", "depths": 3}, "depths=3 must be positive integers"),
        ({"dtype": "float33"}, "dtype='float33' is not one of float16, bfloat16, float32, float64"),
        ({"dtype": "fields"}, "dtype='fields' is not one of"),
        ({"dtype": "int8"}, "dtype='int8' is not one of"),
        ({"torch_dtype": ["float32"]}, "dtype"),
        ({"id2label": ["a", "b"]}, "id2label is a list, but must be a mapping of numbers to names"),
        ({"id2label": {"a": "b"}}, "id2label has 'a': 'b'"),
        ({"id2label": {"0": None}}, "id2label has '0': None"),
        ({"label2id": "ab"}, "label2id is a str"),
        ({"stage_names": ["stem"]}, "'stage_names' is not a value that a configuration can have"),
        ({"to_dict": 1}, "'to_dict' is not a value"),
        (
            {"weights_source": DEEP},
            "'weights_source' holds lists or mappings in too many",
        ),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "weights quantized by 'mxfp4' are not supported"),
        ({"quantization_config": "x"}, "weights quantized by 'x' are not supported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_cannot_be_one(tmp_path, values, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message) as caught:
        loaded(tmp_path, **values)
    assert "\n" not in str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize(
    "text", ["null", "3", '"text"', "[1]", "[" * 100_000, '{"a":' * 5_000, "{", "", "\xff"], ids=repr
)
def test_a_file_that_is_damaged(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises((ValueError, OSError), match=r"config.json|config file") as caught:
        DinoConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_file_does_not_choose_the_kernel(tmp_path, key):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    loaded(tmp_path, **{key: "kernels-community/flash-attn"})
    assert DinoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    eager = DinoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
