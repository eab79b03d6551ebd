"""Configuration and weights that are not of one model: the message names the value and the tensor."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_config

from conversion_scripts.recognition import to_dino
from modeling_dino import DinoBackbone, DinoForImageClassification, DinoForPreTraining, DinoModel


def edited(folder, **values):
    """Changes values in a saved model's `config.json`."""
    path = folder / "config.json"
    stages = dict.fromkeys(("out_features", "out_indices"))  # which depend on the number of layers
    path.write_text(json.dumps({**json.loads(path.read_text()), **stages, **values}))


DISAGREEMENTS = [
    ("vit", {"hidden_size": 64}, "patch_embed.proj.weight is (32, 3, 8, 8), but must be (64, 3, 8, 8)"),
    ("vit", {"num_channels": 1}, "patch_embed.proj.weight"),
    ("vit", {"patch_size": 4}, "patch_embed.proj.weight"),
    ("vit", {"image_size": 64}, "backbone.pos_embed is (1, 17, 32), but must be (1, 65, 32)"),
    ("vit", {"mlp_ratio": 2}, "backbone.blocks.0.mlp.fc1.weight"),
    ("vit", {"num_hidden_layers": 2}, "but the weights have 'backbone.blocks.2."),
    ("vit", {"num_hidden_layers": 4}, "but the weights lack backbone.blocks.3."),
    ("vit", {"num_hidden_layers": 200}, "but the weights lack backbone.blocks.10"),
    ("vit", {"qkv_bias": False}, "but the weights have 'backbone.blocks.2.attn.qkv.bias"),
    ("vit", {"num_register_tokens": 2}, "but the weights lack backbone.register_tokens"),
    ("vit", {"use_mask_token": True}, "but the weights lack backbone.mask_token"),
    ("vit", {"layerscale_value": 1.0}, "but the weights lack backbone.blocks.0.ls1.gamma"),
    ("vit", {"use_swiglu_ffn": True}, "but the weights have 'backbone.blocks.0.mlp.fc1."),
    ("vit", {"rope_theta": 100.0}, "but the weights have 'backbone.pos_embed'"),
    ("vit", {"untie_cls_and_patch_norms": True}, "but the weights lack backbone.cls_norm."),
    ("resnet", {"hidden_size": 128}, "backbone.conv1.weight is (2, 3, 3, 3), but must be (4, 3, 3, 3)"),
    ("resnet", {"depths": [1, 2, 2, 1]}, "but the weights lack backbone.layer3.1."),
    ("resnet", {"resnet_stem": "imagenet"}, "backbone.conv1.weight"),
]


@pytest.mark.parametrize(("family", "values", "tensor"), DISAGREEMENTS, ids=str)
@pytest.mark.parametrize("model_class", [DinoModel, DinoBackbone, DinoForImageClassification])
def test_value_and_tensor_are_named(tmp_path, model_class, family, values, tensor):
    DinoForPreTraining(tiny_config(family)).save_pretrained(tmp_path / "run")
    model_class(tiny_config(family)).save_pretrained(tmp_path / "model")
    for name in ("run", "model"):
        edited(tmp_path / name, **values)
        ((value, size),) = values.items()
        with pytest.raises(ValueError, match=re.escape(f"the configuration has {value}={size!r}")) as caught:
            model_class.from_pretrained(tmp_path / name)
        assert tensor in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"projection_dim": 10},
        {"head_bottleneck_dim": 9},
        {"head_hidden_dim": 9},
        {"head_num_layers": 2},
        {"head_use_bn": True},
        {"head_weight_norm": False},
        {"head_type": "simple"},
    ],
    ids=str,
)
def test_of_the_head(tmp_path, values):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    edited(tmp_path, **values)
    ((value, size),) = values.items()
    for load in (DinoModel.from_pretrained, lambda folder: to_dino(str(folder))):
        with pytest.raises(ValueError, match=f"the configuration has {value}={size!r}"):
            load(tmp_path)


def test_of_the_classifier(tmp_path):
    DinoForImageClassification(tiny_config(num_labels=4)).save_pretrained(tmp_path)
    message = r"classifier.weight is \(4, 32\), but must be \(7, 32\), since the configuration has num_labels=7"
    with pytest.raises(ValueError, match=message):
        DinoForImageClassification.from_pretrained(tmp_path, num_labels=7)
    other = DinoForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier.out_features == 7


def test_another_backbone(tmp_path, family):
    other = "resnet" if family != "resnet" else "vit"
    DinoModel(tiny_config(family)).save_pretrained(tmp_path)
    tiny_config(other).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the configuration has backbone="):
        DinoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("saved", "named"), [("vit", "xcit"), ("xcit", "vit"), ("convnext", "xcit")])
def test_another_kind_of_later_backbone(tmp_path, saved, named):
    DinoModel(tiny_config(saved)).save_pretrained(tmp_path)
    tiny_config(named).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the configuration has backbone="):
        DinoModel.from_pretrained(tmp_path)


def test_less_of_a_model_can_be_asked_for(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    assert len(DinoModel.from_pretrained(tmp_path, num_hidden_layers=2).backbone.blocks) == 2


def test_conversion_names_them_too(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    edited(tmp_path, hidden_size=64)
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is \(32.*hidden_size=64"):
        to_dino(str(tmp_path))


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "a\u202eb", "two\nlines", "\x9b2J"])
def test_names_of_tensors_are_cleaned(tmp_path, text):
    state = {**DinoModel(tiny_config(num_attention_heads=2)).state_dict(), text: torch.zeros(1)}
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="also has") as caught:
        to_dino(str(tmp_path / "file.safetensors"), num_heads=2)
    assert str(caught.value).isprintable()
    assert text not in str(caught.value)
