"""What `dino linear` and `dino finetune` write converts, to where a classifier can go; formats that look the same."""

import json

import pytest
import timm
import torch
import torchvision
from golden_data import assert_close
from safetensors.torch import save_file
from tiny_models import tiny_config
from transformers import ViTForImageClassification

from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.options import ConvertOptions
from conversion_scripts.recognition import to_dino
from modeling_dino import DinoForImageClassification, DinoModel


LABELS = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


def converted(source, output, to: str = "dino", **options) -> str:
    return "\n".join(convert_checkpoint(source=source, output=output, to=to, **options).lines)


def classifier(folder, family: str = "vit", **values) -> DinoForImageClassification:
    """Saves a classifier, and returns it."""
    model = DinoForImageClassification(tiny_config(family, **LABELS, **values)).eval()
    model.classifier.weight.data.normal_()
    model.classifier.bias.data.normal_()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def test_a_classifier_stays_one(tmp_path, family):
    model, images = classifier(tmp_path / "model", family), torch.randn(2, 3, 32, 32)
    lines = converted(tmp_path / "model", tmp_path / "out", verify=True)
    assert "no head, classifier of 3 classes" in lines
    again = DinoForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(images).logits, model(images).logits)
    assert again.config.id2label == LABELS["id2label"]


@torch.no_grad()
def test_transformers_classifies_the_same(tmp_path):
    model, images = classifier(tmp_path / "model"), torch.randn(2, 3, 32, 32)
    assert "verified" in converted(tmp_path / "model", tmp_path / "out", "transformers", verify=True)
    theirs = ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert_close(theirs(images).logits, model(images).logits)
    assert theirs.config.id2label == LABELS["id2label"]
    assert "classifier of 3 classes" in converted(tmp_path / "out", tmp_path / "back")
    back = DinoForImageClassification.from_pretrained(tmp_path / "back").eval()
    assert_close(back(images).logits, model(images).logits)
    assert back.config.id2label == LABELS["id2label"]


@torch.no_grad()
def test_timm_classifies_the_same(tmp_path):
    model, images = classifier(tmp_path / "model"), torch.randn(2, 3, 32, 32)
    assert "verified" in converted(tmp_path / "model", tmp_path / "out", "timm", verify=True)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert_close(theirs(images), model(images).logits)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["cat", "dog", "owl"]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchvision", "timm"])
@torch.no_grad()
def test_resnets_classify_the_same_elsewhere(tmp_path, to):
    sizes = {"backbone": "resnet18", "hidden_size": 512, "depths": None, "resnet_stem": "imagenet"}
    model, images = classifier(tmp_path / "model", "resnet", **sizes), torch.randn(2, 3, 64, 64)
    output = tmp_path / ("out.pth" if to == "torchvision" else "out")
    converted(tmp_path / "model", output, to)
    if to == "torchvision":
        theirs = torchvision.models.resnet18(num_classes=3).eval()
        theirs.load_state_dict(torch.load(output, weights_only=True))
    else:
        theirs = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    assert_close(theirs(images), model(images).logits)


@pytest.mark.parametrize(
    ("to", "values"),
    [
        ("original", {}),
        ("lesson", {}),
        ("timm", {"classifier_last_blocks": 2}),
        ("transformers", {"classifier_features": "cls_patch_mean"}),
    ],
)
def test_a_classifier_that_has_no_place_is_named(tmp_path, to, values):
    classifier(tmp_path / "model", **values)
    lines = converted(tmp_path / "model", tmp_path / "out", to)
    assert "left out: the classifier of 3 classes, which " in lines
    back = to_dino(str(tmp_path / "out"), num_heads=4)
    assert back.classifier == {}


def test_a_classifier_of_other_classes_than_the_configuration_has(tmp_path):
    classifier(tmp_path)
    path = tmp_path / "config.json"
    settings = {**json.loads(path.read_text()), "id2label": {"0": "a"}, "label2id": {"a": 0}}
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="the classifier is not that of 1 classes"):
        to_dino(str(tmp_path))


TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 0}


@pytest.mark.parametrize("fields", [{"model_type": "vit"}, {"model_type": "vit", "hidden_act": "gelu"}], ids=str)
@pytest.mark.parametrize("without", [(), ("architecture",)], ids=str)
def test_a_folder_of_timm_that_says_it_is_a_vit(tmp_path, fields, without):
    theirs = timm.create_model("vit_tiny_patch16_224", **TINY_TIMM).eval()
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_args=TINY_TIMM)
    path = tmp_path / "timm" / "config.json"
    settings = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in settings.items() if key not in without}))
    conversion = to_dino(str(tmp_path / "timm"), num_heads=4)
    assert (conversion.format, conversion.config.position_interpolation) == ("timm", "antialias")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(conversion.build_model()(images).pooler_output, theirs(images))


def test_a_bare_vit_may_be_of_either_library_and_the_option_decides(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **TINY_TIMM).eval()
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    save_file(theirs.state_dict(), tmp_path / "bare.safetensors")
    line = "pass --from timm if it is one of them, which differ a little on images that are not 32 px"
    for name in ("bare.pth", "bare.safetensors"):
        assert line in converted(tmp_path / name, tmp_path / f"guessed-{name}", num_heads=4)
    lines = converted(tmp_path / "bare.pth", tmp_path / "timm", num_heads=4, from_format="timm")
    assert line not in lines
    assert "as timm:" in lines
    assert line not in converted(tmp_path / "bare.pth", tmp_path / "original", num_heads=4, from_format="original")
    images = torch.randn(2, 3, 56, 40)
    with torch.no_grad():
        assert_close(DinoModel.from_pretrained(tmp_path / "timm").eval()(images).pooler_output, theirs(images))


@pytest.mark.parametrize("from_format", ["timm", "transformers", "torchvision", "lesson", "original"])
def test_a_format_that_the_source_does_not_have(tmp_path, from_format):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"args": 3, "epoch": 1}, tmp_path / "none.pth")
    for name in ("other.pth", "none.pth"):
        with pytest.raises(ValueError, match=r"neither a ViT nor a ResNet|is not of the format of"):
            to_dino(str(tmp_path / name), from_format=from_format)
    with pytest.raises(ValueError, match="unknown format 'torch': allowed are lesson, original, timm"):
        ConvertOptions(source="a", output="b", from_format="torch")
