"""transformers' DINOv2, DINOv3 and ConvNeXt give the same features here, and back in transformers."""

import json

import pytest
import torch
from golden_data import assert_close
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
)

from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.recognition import format_for, to_dino
from modeling_dino import DinoForImageClassification, DinoModel


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
OPTIONS_V3 = {"intermediate_size": 48, "num_register_tokens": 3, "rope_theta": 70.0}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "image_size": 64}
MODELS = {
    "dinov2": (Dinov2Model, Dinov2Config(**VIT)),
    "dinov2 no mask": (Dinov2Model, Dinov2Config(**VIT, use_mask_token=False, mlp_ratio=2)),
    "dinov2 swiglu": (Dinov2Model, Dinov2Config(**VIT, use_swiglu_ffn=True, layer_norm_eps=1e-5)),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**VIT, num_register_tokens=2)),
    "registers swiglu": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**VIT, use_swiglu_ffn=True)),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig(**VIT, **OPTIONS_V3)),
    "dinov3 swiglu": (DINOv3ViTModel, DINOv3ViTConfig(**VIT, **OPTIONS_V3, use_gated_mlp=True, hidden_act="silu")),
    "dinov3 plain": (DINOv3ViTModel, DINOv3ViTConfig(**VIT, intermediate_size=64, key_bias=True, rope_theta=50.0)),
    "dinov3 no bias": (
        DINOv3ViTModel,
        DINOv3ViTConfig(**VIT, **OPTIONS_V3, query_bias=False, value_bias=False),
    ),
    "convnext": (DINOv3ConvNextModel, DINOv3ConvNextConfig(**CONVNEXT)),
}
SIZES_IN_PIXELS = [(32, 32), (64, 64), (40, 56), (16, 24)]


def random_model(name: str) -> PreTrainedModel:
    """A model whose parameters all have values of their own."""
    model_class, config = MODELS[name]
    return randomised(model_class(config))


@torch.no_grad()
def randomised(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def converted(source, output, to: str = "dino", **options) -> str:
    return "\n".join(convert_checkpoint(source=source, output=output, to=to, **options).lines)


@torch.no_grad()
def check_same_features(theirs: PreTrainedModel, ours: DinoModel):
    for height, width in SIZES_IN_PIXELS:
        if ours.config.backbone.startswith("convnext"):
            height, width = 2 * height, 2 * width
        images = torch.randn(2, 3, height, width)
        output = ours(images)
        expected = theirs(images)
        assert_close(output.pooler_output, expected.pooler_output)
        assert_close(output.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers(tmp_path, name):
    theirs = random_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    model = DinoModel.from_pretrained(tmp_path / "theirs").eval()
    check_same_features(theirs, model)
    model.save_pretrained(tmp_path / "dino")
    lines = converted(tmp_path / "dino", tmp_path / "back", "transformers")
    assert "but transformers" not in lines
    assert "left out" not in lines
    again, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    ours, theirs = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("back", "theirs"))
    told = ("initializer_range", "out_features", "out_indices", "stage_names", "dtype")
    assert {k: v for k, v in ours.items() if k not in told} == {k: v for k, v in theirs.items() if k not in told}


@pytest.mark.parametrize("name", ["dinov2 swiglu", "registers", "dinov3 swiglu", "dinov3 plain", "convnext"])
def test_names_of_the_modules(tmp_path, name):
    theirs = random_model(name)
    theirs.save_pretrained(tmp_path)
    expected = to_dino(str(tmp_path)).state_dict
    path = tmp_path / "model.safetensors"
    assert set(load_file(path)) != set(theirs.state_dict())
    save_file(theirs.state_dict(), path, metadata={"format": "pt"})
    ours = to_dino(str(tmp_path)).state_dict
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


def test_dinov2_without_registers_differs_from_the_original_at_other_sizes_and_that_is_said(tmp_path):
    random_model("dinov2").save_pretrained(tmp_path / "theirs")
    lines = converted(tmp_path / "theirs", tmp_path / "dino")
    assert "not 32 px are those of the library, which differ from the original's by some percent" in lines
    lines = converted(tmp_path / "dino", tmp_path / "original.pth", "original")
    assert "position_interpolation is 'size', but the original of DINOv2 computes with 'dino'" in lines
    random_model("registers").save_pretrained(tmp_path / "registers")
    assert "differ" not in converted(tmp_path / "registers", tmp_path / "out")


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Dinov2ForImageClassification, Dinov2Config(**VIT, num_labels=3)),
        (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig(**VIT, num_labels=3)),
    ],
)
@torch.no_grad()
def test_a_classifier(tmp_path, model_class, config):
    theirs = randomised(model_class(config))
    theirs.config.id2label = {0: "cat", 1: "dog", 2: "owl"}
    theirs.save_pretrained(tmp_path / "theirs")
    assert "classifier of 3 classes" in converted(tmp_path / "theirs", tmp_path / "dino")
    model = DinoForImageClassification.from_pretrained(tmp_path / "dino").eval()
    images = torch.randn(2, 3, 32, 32)
    assert_close(model(images).logits, theirs(images).logits)
    assert model.config.id2label == theirs.config.id2label
    converted(tmp_path / "dino", tmp_path / "back", "transformers")
    again = model_class.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(again(images).logits, theirs(images).logits)
    assert again.config.id2label == theirs.config.id2label


def test_what_verify_compares_with(tmp_path):
    for name in ("registers", "dinov3", "convnext"):
        random_model(name).save_pretrained(tmp_path / name)
        line = converted(tmp_path / name, tmp_path / f"{name} converted", verify=True).splitlines()[-1]
        assert line.startswith("verified: the ")
        assert ", by transformers " in line
        assert float(line.split()[-4]) < 1e-5


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dinov2", {"use_rms_norm": True}, "cannot hold a vit_tiny with use_rms_norm=True, only with False"),
        ("registers", {"layerscale_value": None}, "cannot hold a vit_tiny without layer scale"),
        ("dinov2", {"mlp_ratio": 1.5}, "a feed-forward network 48 wide: its mlp_ratio must be whole"),
        ("dinov3", {"rope_coordinates": "max"}, "with rope_coordinates='max', only with 'separate'"),
        ("dinov3", {"untie_cls_and_patch_norms": True}, "with untie_cls_and_patch_norms=True, only with False"),
    ],
)
def test_what_transformers_cannot_hold(tmp_path, name, values, message):
    random_model(name).save_pretrained(tmp_path)
    config = to_dino(str(tmp_path)).config
    model = DinoModel(type(config)(**{**config.to_dict(), **values}))
    with pytest.raises(ValueError, match=message):
        format_for(model.config, "transformers").from_dino(model.config, model.state_dict())


def test_what_transformers_does_not_keep_of_a_dinov3_is_said(tmp_path):
    random_model("dinov3").save_pretrained(tmp_path)
    conversion = to_dino(str(tmp_path))
    config = type(conversion.config)(**{**conversion.config.to_dict(), "untie_global_and_local_cls_norm": True})
    state_dict = {name: tensor.clone() for name, tensor in DinoModel(config).state_dict().items()}
    into = format_for(config, "transformers")
    assert len(into.from_dino(config, state_dict).notes) == 1  # the norm of local crops
    state_dict["backbone.rope_embed.periods"] = state_dict["backbone.rope_embed.periods"].bfloat16().float()
    state_dict["backbone.blocks.0.attn.qkv.bias"] += 1
    notes = "\n".join(into.from_dino(config, state_dict).notes)
    assert "left out: backbone.local_cls_norm.weight, backbone.local_cls_norm.bias, for which transformers" in notes
    assert "left out: the periods of the rotary positions" in notes
    assert "left out: the bias of the keys, which has no effect" in notes
