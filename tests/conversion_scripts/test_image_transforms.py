"""Weights take their image transform along, whatever moves them, and pixels come out as in the library they are of."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from golden_data import GOLDEN_DIR, read_golden
from PIL import Image
from tiny_models import tiny_config
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from conversion_scripts.convert import convert_checkpoint
from modeling_dino import DinoBackbone, DinoForImageClassification, DinoForPreTraining, DinoModel
from modeling_dino.evaluation.linear import classifier_of
from modeling_dino.hub.loading import load_image_processor


CLASSES = [DinoModel, DinoBackbone, DinoForImageClassification, DinoForPreTraining]
TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 0}
HALF = [0.5, 0.5, 0.5]


@pytest.fixture(params=[(90, 61), (48, 60)], ids=str)
def picture(request) -> Image.Image:
    width, height = request.param
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def settings_in(folder: Path) -> dict:
    return json.loads((folder / "preprocessor_config.json").read_text())


def saved_with(folder: Path, **changed) -> dict:
    """Saves a model, and changes its image transform; returns that."""
    DinoModel(tiny_config()).save_pretrained(folder)
    settings = {**settings_in(folder), **changed}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return settings


def converted(source: Path, output: Path, to: str = "dino", **options) -> tuple[str, ...]:
    options = {"num_heads": 4, **options}
    return convert_checkpoint(source=source, output=output, to=to, **options).lines


def ours(folder: Path, image: Image.Image) -> torch.Tensor:
    """What `dino extract` computes on."""
    processor = load_image_processor(str(folder), DinoModel.from_pretrained(folder).config)
    return processor(image, return_tensors="pt")["pixel_values"]


def by_timm(folder: Path, image: Image.Image) -> torch.Tensor:
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    return timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg))(image)[None]


def by_transformers(folder: Path, image: Image.Image) -> torch.Tensor:
    return AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_saved_elsewhere_keeps_its_transform(tmp_path, model_class):
    settings = saved_with(tmp_path / "a", image_mean=HALF, size={"shortest_edge": 32})
    DinoModel(tiny_config()).save_pretrained(tmp_path / "b")  # which is replaced
    model = model_class.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert settings_in(tmp_path / "b") == settings == model.image_transform
    if model_class is DinoForPreTraining:
        model.teacher.save_pretrained(tmp_path / "teacher")
        assert settings_in(tmp_path / "teacher") == settings
        assert DinoModel.from_pretrained(tmp_path / "b", which="student").image_transform == settings


def test_a_model_made_of_another_has_its_transform(tmp_path):
    settings = saved_with(tmp_path, image_mean=HALF)
    model = DinoModel.from_pretrained(tmp_path)
    assert classifier_of(model, ["a", "b"]).image_transform == settings
    assert DinoForPreTraining.from_model(model).student.image_transform == settings


def test_a_transform_that_is_set_is_saved(tmp_path):
    model = DinoForPreTraining(tiny_config())
    assert model.image_transform["image_std"] == [0.229, 0.224, 0.225]
    model.image_transform = {**model.image_transform, "image_mean": HALF, "image_std": HALF}
    model.save_pretrained(tmp_path)
    assert settings_in(tmp_path)["image_mean"] == settings_in(tmp_path)["image_std"] == HALF
    with pytest.raises(ValueError, match=r"image_std=\[0.5\] must be 3 numbers, one for each channel of the model"):
        model.image_transform = {"image_std": [0.5]}


@pytest.mark.parametrize("options", [{}, {"which": "student"}], ids=str)
def test_a_conversion_keeps_the_transform(tmp_path, options):
    saved_with(tmp_path / "model", image_mean=HALF)
    DinoForPreTraining.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "run")
    converted(tmp_path / "run", tmp_path / "out", **options)
    assert settings_in(tmp_path / "out")["image_mean"] == HALF


@pytest.mark.parametrize(("to", "library"), [("transformers", by_transformers), ("timm", by_timm)])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"image_mean": HALF, "image_std": HALF},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 2},
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 48}, "resample": 1},
        {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
        {"do_normalize": False},
    ],
    ids=str,
)
def test_other_libraries_see_the_same_pixels(tmp_path, picture, to, library, changed):
    saved_with(tmp_path / "model", **changed)
    assert "image transform" not in "".join(converted(tmp_path / "model", tmp_path / "out", to))
    expected = ours(tmp_path / "model", picture)
    torch.testing.assert_close(library(tmp_path / "out", picture), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(tmp_path / "out", picture), expected, atol=1e-5, rtol=1e-5)
    converted(tmp_path / "out", tmp_path / "back")
    torch.testing.assert_close(ours(tmp_path / "back", picture), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", ["original", "lesson"])
def test_a_file_has_no_place_for_a_transform_and_that_is_said(tmp_path, to):
    saved_with(tmp_path / "usual")
    assert "image transform" not in "".join(converted(tmp_path / "usual", tmp_path / "usual.pth", to))
    saved_with(tmp_path / "own", image_mean=HALF)
    lines = "\n".join(converted(tmp_path / "own", tmp_path / "own.pth", to))
    assert "left out: the image transform, for which" in lines
    assert "image_mean [0.5, 0.5, 0.5]" in lines


@pytest.mark.parametrize(
    "changed",
    [
        {"do_center_crop": False},
        {"crop_size": {"height": 32, "width": 24}},
        {"do_resize": False},
        {"image_processor_type": "ConvNextImageProcessor"},
    ],
    ids=str,
)
def test_what_timm_cannot_do_is_said(tmp_path, changed):
    saved_with(tmp_path / "model", **changed)
    assert "the image transform, which timm cannot do" in "".join(
        converted(tmp_path / "model", tmp_path / "out", "timm")
    )


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bicubic"},
        {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
        {"crop_pct": 0.95, "input_size": [3, 40, 40], "interpolation": "lanczos"},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_folder_of_timm_sees_its_own_pixels(tmp_path, picture, cfg):
    theirs = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **TINY_TIMM).eval()
    theirs.pretrained_cfg = {**theirs.pretrained_cfg, "input_size": [3, 32, 32], **cfg}
    timm.models.save_for_hf(theirs, tmp_path / "timm", model_args=TINY_TIMM)
    data = timm.data.resolve_data_config({}, model=theirs)
    expected = theirs(timm.data.create_transform(**data)(picture)[None])
    for folder in ("timm", "again"):
        model = DinoModel.from_pretrained(tmp_path / folder).eval()
        pixels = ours(tmp_path / folder, picture)
        torch.testing.assert_close(model(pixels).pooler_output, expected, atol=1e-4, rtol=1e-4)
        model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": 32},
        {"size": {"height": 32, "width": 40}, "resample": 3, "image_mean": [0.4, 0.5, 0.6]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": 100.0, "image_std": 50.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_folder_of_transformers_sees_its_own_pixels(tmp_path, picture, settings):
    theirs = ViTModel(ViTConfig(**TINY_VIT, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "vit")
    size = {} if "size" in settings else {"size": {"height": 32, "width": 32}}
    ViTImageProcessor(**size, **settings).save_pretrained(tmp_path / "vit")
    pixels = by_transformers(tmp_path / "vit", picture)
    expected = theirs(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    for folder in ("vit", "again"):
        model = DinoModel.from_pretrained(tmp_path / folder).eval()
        assert torch.equal(ours(tmp_path / folder, picture), pixels)
        assert torch.allclose(model(pixels).pooler_output, expected, atol=1e-4)
        model.save_pretrained(tmp_path / "again")


def test_an_older_file_of_transformers(tmp_path, picture):
    """As beside facebook/dino-vits16: named a feature extractor, with the size as a number."""
    ViTModel(ViTConfig(**TINY_VIT, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    older = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor"}
    older |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    assert torch.equal(ours(tmp_path, picture), by_transformers(tmp_path, picture))


# What the later DINOs are published with

SIZED_224 = {"size": {"height": 224, "width": 224}, "crop_size": {"height": 224, "width": 224}}
TINY_V3 = DINOv3ViTConfig(**TINY_VIT, image_size=32, patch_size=8, num_register_tokens=1)


def processor_of_dinov2() -> BitImageProcessor:
    """As beside facebook/dinov2-small."""
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return BitImageProcessor(crop_size={"height": 224, "width": 224}, size={"shortest_edge": 256}, **statistics)


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_the_images_of_transformers_dinov2(tmp_path, picture, to):
    Dinov2Model(Dinov2Config(**TINY_VIT, image_size=32, patch_size=8)).save_pretrained(tmp_path / "theirs")
    processor_of_dinov2().save_pretrained(tmp_path / "theirs")
    expected = by_transformers(tmp_path / "theirs", picture)
    assert torch.equal(ours(tmp_path / "theirs", picture), expected)
    assert DinoModel.from_pretrained(tmp_path / "theirs").image_transform["size"] == {"shortest_edge": 256}
    converted(tmp_path / "theirs", tmp_path / "dino")
    converted(tmp_path / "dino", tmp_path / "back", to)
    library = by_transformers if to == "transformers" else by_timm
    torch.testing.assert_close(library(tmp_path / "back", picture), expected, atol=1e-5, rtol=1e-5)


def test_the_images_of_transformers_dinov3(tmp_path, picture):
    """Its processor does not round to 8 bits after resizing; ours does, so some pixels are a grey level off."""
    DINOv3ViTModel(TINY_V3).save_pretrained(tmp_path / "theirs")
    DINOv3ViTImageProcessor().save_pretrained(tmp_path / "theirs")
    expected = DINOv3ViTImageProcessor.from_pretrained(tmp_path / "theirs")(picture, return_tensors="pt").pixel_values
    converted(tmp_path / "theirs", tmp_path / "dino")
    for folder in ("theirs", "dino"):
        torch.testing.assert_close(ours(tmp_path / folder, picture), expected, atol=1.01 / 255 / 0.224, rtol=0)
    lines = converted(tmp_path / "dino", tmp_path / "timm", "timm")
    assert "image transform" not in "".join(lines)
    expected = ours(tmp_path / "dino", picture)
    torch.testing.assert_close(by_timm(tmp_path / "timm", picture), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("dinov2_teacher_checkpoint_shared.pth", {"size": {"shortest_edge": 256}, "resample": 3}),
        ("dinov3_teacher_checkpoint.pth", {**SIZED_224, "resample": 2, "do_center_crop": False}),
    ],
)
def test_a_file_of_the_original_has_the_images_of_its_family(tmp_path, file, expected):
    sizes = read_golden("dinov2_checkpoint_outputs")[0]["shared"]["vit"] if "dinov2" in file else {}
    converted(GOLDEN_DIR / file, tmp_path / "dino", num_heads=sizes.get("num_heads"))
    settings = settings_in(tmp_path / "dino")
    assert {name: settings[name] for name in expected} == expected
    assert settings["crop_size"] == SIZED_224["crop_size"]
    assert settings["image_std"] == [0.229, 0.224, 0.225]


def test_the_satellite_images_of_dinov3_go_by_the_name_of_the_file(tmp_path):
    (tmp_path / "dinov3_vitl16_pretrain_sat493m.pth").symlink_to(GOLDEN_DIR / "dinov3_teacher_checkpoint.pth")
    converted(tmp_path / "dinov3_vitl16_pretrain_sat493m.pth", tmp_path / "dino", num_heads=None)
    assert settings_in(tmp_path / "dino")["image_mean"] == [0.430, 0.411, 0.296]
