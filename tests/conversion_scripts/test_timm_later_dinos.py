"""timm's DINOv2, DINOv3, ConvNeXt and XCiT give the same features here, and back in timm."""

import json

import pytest
import timm
import torch
from golden_data import assert_close
from safetensors.torch import load_file

from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.recognition import format_for, to_dino
from modeling_dino import DinoForImageClassification, DinoModel


VIT = {"embed_dim": 32, "depth": 2, "num_heads": 4, "dynamic_img_size": True}
V2 = {**VIT, "img_size": 28}
V3 = {**VIT, "img_size": 32}
XCIT = {"embed_dim": 32, "depth": 2, "num_heads": 4}
MODELS = {
    "vit_small_patch14_dinov2": V2,
    "vit_giant_patch14_dinov2": V2,
    "vit_base_patch14_reg4_dinov2": V2,
    "vit_giant_patch14_reg4_dinov2": V2,
    "vit_small_patch16_dinov3": V3,
    "vit_base_patch16_dinov3_qkvb": V3,
    "vit_small_plus_patch16_dinov3": V3,
    "vit_small_plus_patch16_dinov3_qkvb": V3,
    "vit_7b_patch16_dinov3": {**V3, "rope_temperature": 50.0},
    "convnext_tiny": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
    "xcit_small_12_p16_224": XCIT,
    "xcit_small_12_p8_224": XCIT,
    "xcit_nano_12_p8_224": XCIT,
}
OURS = {"dynamic_img_size", "device"}  # arguments that a folder of ours does not hold
WITH_GLOBAL_POOL = {name: {"global_pool": "token"} for name in MODELS if "dinov3" in name}


@torch.no_grad()
def random_model(name: str, **arguments) -> torch.nn.Module:
    """A model whose parameters and statistics all have values of their own."""
    theirs = timm.create_model(name, num_classes=0, **WITH_GLOBAL_POOL.get(name, {}), **MODELS[name], **arguments)
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.4)
    return theirs.eval()


def saved(name: str, folder) -> torch.nn.Module:
    theirs = random_model(name)
    arguments = {key: value for key, value in MODELS[name].items() if key not in OURS}
    timm.models.save_for_hf(theirs, folder, model_args={**arguments, **WITH_GLOBAL_POOL.get(name, {})})
    return theirs


def converted(source, output, to: str = "dino", **options) -> str:
    return "\n".join(convert_checkpoint(source=source, output=output, to=to, **options).lines)


def sizes_of(name: str) -> list[tuple[int, int]]:
    step = 14 if "patch14" in name else 16
    step = 32 if name.startswith("convnext") else step
    return [(2 * step, 2 * step), (4 * step, 4 * step), (2 * step, 3 * step), (step, step)]


@torch.no_grad()
def check_same_features(name: str, theirs: torch.nn.Module, ours: DinoModel):
    for height, width in sizes_of(name):
        images = torch.randn(2, 3, height, width)
        assert_close(ours(images).pooler_output, theirs(images))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_timm(tmp_path, name):
    theirs = saved(name, tmp_path / "theirs")
    model = DinoModel.from_pretrained(tmp_path / "theirs").eval()
    check_same_features(name, theirs, model)
    model.save_pretrained(tmp_path / "dino")
    lines = converted(tmp_path / "dino", tmp_path / "back", "timm")
    assert "left out" not in lines
    assert "but timm" not in lines
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    dynamic = {"dynamic_img_size": True} if name.startswith("vit") else {}
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True, **dynamic).eval()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    check_same_features(name, again, model)
    plain = timm.create_model(settings["architecture"], **settings["model_args"])
    plain.load_state_dict(load_file(tmp_path / "back" / "model.safetensors"), strict=True)


@pytest.mark.parametrize("name", [name for name in MODELS if "nano" not in name and "7b" not in name])
def test_a_bare_state_dict_of_timm_is_recognised(tmp_path, name):
    theirs = random_model(name)
    torch.save({"state_dict": {f"backbone.{key}": t for key, t in theirs.state_dict().items()}}, tmp_path / "in.pth")
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    files = ["bare.pth"] if name.startswith(("convnext", "xcit")) else ["bare.pth", "in.pth"]
    for file in files:
        conversion = to_dino(str(tmp_path / file), num_heads=4)
        assert conversion.format == "timm"
        check_same_features(name, theirs, conversion.build_model())


@torch.no_grad()
def test_what_timm_does_not_keep_is_said(tmp_path):
    """The CLS token's position is in the CLS token: other tensors of the same function, and no mask token."""
    saved("vit_base_patch14_reg4_dinov2", tmp_path / "theirs")
    conversion = to_dino(str(tmp_path / "theirs"))
    config = type(conversion.config)(**{**conversion.config.to_dict(), "use_mask_token": True})
    state_dict = {name: torch.randn_like(tensor) for name, tensor in DinoModel(config).state_dict().items()}
    packed = format_for(config, "timm").from_dino(config, state_dict)
    assert packed.notes == [
        "left out: backbone.mask_token, for which timm has no place",
        "the position of the CLS token is added to the CLS token, where timm keeps it",
    ]
    model = DinoModel.from_pretrained(None, config=config, state_dict=state_dict).eval()
    theirs = timm.create_model(packed.config["architecture"], dynamic_img_size=True, **packed.config["model_args"])
    theirs.load_state_dict(packed.contents, strict=True)
    check_same_features("vit_base_patch14_reg4_dinov2", theirs.eval(), model)


def test_what_timm_does_not_keep_of_a_dinov3_is_said(tmp_path):
    saved("vit_base_patch16_dinov3_qkvb", tmp_path / "theirs")
    conversion = to_dino(str(tmp_path / "theirs"))
    values = {"untie_global_and_local_cls_norm": True, "use_mask_token": True, "layer_norm_eps": 1e-6}
    config = type(conversion.config)(**{**conversion.config.to_dict(), **values, "rope_theta": 70.0})
    state_dict = {name: tensor.clone() for name, tensor in DinoModel(config).state_dict().items()}
    state_dict["backbone.rope_embed.periods"] = state_dict["backbone.rope_embed.periods"].bfloat16().float()
    state_dict["backbone.blocks.0.attn.qkv.bias"] += 1
    notes = "\n".join(format_for(config, "timm").from_dino(config, state_dict).notes)
    assert "backbone.mask_token, backbone.local_cls_norm.weight, backbone.local_cls_norm.bias, for which" in notes
    assert "left out: the periods of the rotary positions" in notes
    assert "left out: the bias of the keys, which has no effect" in notes
    assert "layer_norm_eps is 1e-06, but timm computes with 1e-05" in notes
    config.key_bias = True
    with pytest.raises(ValueError, match="of DINOv3 with a bias of the keys"):
        format_for(config, "timm").from_dino(config, state_dict)


def test_the_feature_of_a_dinov3_is_the_cls_token_and_that_is_said(tmp_path):
    theirs = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **V3)
    model_args = {key: value for key, value in V3.items() if key not in OURS}
    timm.models.save_for_hf(theirs, tmp_path / "theirs", model_args=model_args)
    lines = converted(tmp_path / "theirs", tmp_path / "dino", verify=True)
    assert "the feature is the CLS token, where timm's own is the mean of the patches" in lines
    assert "weights_license" in (tmp_path / "dino" / "config.json").read_text()
    assert float(lines.split()[-4]) < 1e-5


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "xcit_nano_12_p8_224"])
@torch.no_grad()
def test_a_classifier(tmp_path, name):
    saved(name, tmp_path / "theirs")
    config = to_dino(str(tmp_path / "theirs")).config
    config.id2label = {0: "cat", 1: "dog", 2: "owl"}
    model = DinoForImageClassification(config).eval()
    model.classifier.weight.normal_()
    model.save_pretrained(tmp_path / "dino")
    converted(tmp_path / "dino", tmp_path / "out", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, *sizes_of(name)[0])
    assert_close(theirs(images), model(images).logits)
