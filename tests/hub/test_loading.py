"""Models and image transforms that would spoil what is computed with them are refused when they are loaded."""

import json
import math

import pytest
import torch
from tiny_models import tiny_config

from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.options import ConvertOptions
from modeling_dino import DinoImageProcessor, DinoModel
from modeling_dino.hub.loading import load_image_processor, load_model


NAN, INF = math.nan, math.inf


def spoilt(family: str, name: str, value: float, dtype: torch.dtype) -> DinoModel:
    model = DinoModel(tiny_config(family)).to(dtype)
    model.state_dict()[name].view(-1)[-1] = value
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("vit", "backbone.norm.bias"),
        ("vit", "head.last_layer.weight_v"),
        ("resnet", "backbone.layer1.0.bn1.running_var"),
    ],
)
def test_weights_that_are_not_finite(tmp_path, family, name, value, dtype):
    model = spoilt(family, name, value, dtype)
    model.save_pretrained(tmp_path / "model")
    torch.save({"teacher": model.state_dict()}, tmp_path / "file.pth")
    message = f"{name} has weights that are infinite or not numbers"
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "model"))
    for source in ("model", "file.pth"):
        options = ConvertOptions(source=str(tmp_path / source), output=str(tmp_path / "out"), verify=True, num_heads=4)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(options)
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_are_not_verified(tmp_path):
    model = DinoModel(tiny_config(head_type=None))
    model.backbone.norm.weight.data.fill_(3e38)
    model.backbone.norm.bias.data.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    options = ConvertOptions(source=str(tmp_path / "model"), output=str(tmp_path / "out"), verify=True)
    with pytest.raises(ValueError, match="or the source's are infinite or not numbers"):
        convert_checkpoint(options)


BAD_TRANSFORMS = [
    ({"image_std": [0.2, 0.0, 0.2]}, "image_std=[0.2, 0.0, 0.2] must be greater than 0"),
    ({"image_std": [0.2, -0.1, 0.2]}, "must be greater than 0"),
    ({"image_std": 0}, "must be greater than 0"),
    ({"image_std": NAN}, "must be finite numbers"),
    ({"image_mean": [0.5, NAN, 0.5]}, "must be finite numbers, one a channel"),
    ({"image_mean": [INF] * 3}, "must be finite numbers"),
    ({"image_mean": [10**400] * 3}, "must be finite numbers"),
    ({"image_mean": [0.5]}, "must be 3 numbers, one for each channel of the model"),
    ({"image_mean": [0.5] * 4}, "must be 3 numbers"),
    ({"image_mean": []}, "must be finite numbers"),
    ({"image_mean": "0.5"}, "must be finite numbers"),
    ({"image_mean": [[0.5] * 3]}, "must be finite numbers"),
    ({"image_mean": {"r": 0.5}}, "must be finite numbers"),
    ({"rescale_factor": NAN}, "must be a finite number greater than 0"),
    ({"rescale_factor": 0}, "must be a finite number greater than 0"),
    ({"rescale_factor": "1/255"}, "must be a finite number greater than 0"),
    ({"size": {"shortest_edge": 0}}, "must be whole numbers of pixels"),
    ({"size": {"shortest_edge": 10**9}}, "must be whole numbers of pixels from 1 to 16384"),
    ({"size": {"shortest_edge": 32.5}}, "must be whole numbers of pixels"),
    ({"size": {}}, "must be whole numbers of pixels"),
    ({"size": "32"}, "must be whole numbers of pixels"),
    ({"crop_size": {"height": -1, "width": 32}}, "must be whole numbers of pixels"),
    ({"crop_size": {"shortest_edge": 32}}, "must be a height and a width"),
    ({"resample": 9}, "must be one of 0, 1, 2, 3, 4, 5"),
    ({"resample": "bicubic"}, "must be a number"),
    ({"do_resize": "yes"}, "must be true or false"),
    ({"do_normalize": [True]}, "must be true or false"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_TRANSFORMS, ids=str)
def test_a_transform_that_cannot_work(tmp_path, changed, message):
    model = DinoModel(tiny_config())
    model.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    settings = {**json.loads(file.read_text()), **changed}
    file.write_text(json.dumps(settings))
    options = ConvertOptions(source=str(tmp_path), output=str(tmp_path / "out"))
    for load in (
        lambda: load_image_processor(str(tmp_path), model.config),
        lambda: DinoModel.from_pretrained(tmp_path),
        lambda: convert_checkpoint(options),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below, as plain text)
            load()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"), [case for case in BAD_TRANSFORMS if "for each channel" not in case[1]], ids=str
)
def test_a_processor_that_cannot_work(changed, message):
    if changed in ({"image_mean": [0.5] * 4}, {"size": {}}):
        return  # right for some model, or filled in by transformers
    with pytest.raises((ValueError, TypeError)):
        DinoImageProcessor(**changed)
