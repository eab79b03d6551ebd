"""Lists of images of different sizes: each as it is alone, whatever the others are."""

import inspect

import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoImageProcessor, DinoModel
from modeling_dino.image_processing_dino import image_processor_config


pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(32, 32), (40, 53), (32, 32), (33, 64), (53, 40), (40, 53), (71, 39)]


def model_of(family: str, **overrides) -> DinoModel:
    return DinoModel(tiny_config(family, **overrides)).eval()


def images_of(sizes=SIZES) -> list[torch.Tensor]:
    return [torch.randn(3, *size) for size in sizes]


@torch.no_grad()
def test_each_image_is_as_it_is_alone(family):
    model, images = model_of(family), images_of()
    asked = {"output_hidden_states": True, "project_patches": True, "output_attentions": model.backbone.has_attention}
    found, features = model(images, **asked), model.get_features(images)
    assert features.shape == (len(images), model.backbone.stage_channels[-1])
    for i, image in enumerate(images):
        alone = model(image[None], **asked)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            layers = list(zip(found[name], value)) if isinstance(value, tuple) else [(found[name], value)]
            for listed, expected in layers:
                assert isinstance(listed, list)
                torch.testing.assert_close(listed[i], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(features[i], alone.pooler_output[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_of_one_size_are_the_batch_bit_for_bit(family):
    model, images = model_of(family), images_of([(40, 53)] * 3)
    stacked, listed = model(torch.stack(images)), model(tuple(images))
    for name, value in stacked.items():
        assert torch.equal(torch.stack(listed[name]), value), name
    assert torch.equal(model.get_features(images), model.get_features(torch.stack(images)))


@torch.no_grad()
def test_images_of_one_size_go_through_the_model_together(monkeypatch):
    model, sizes = model_of("vit"), []
    embed = type(model.backbone).embed
    monkeypatch.setattr(type(model.backbone), "embed", lambda self, x, *a: sizes.append(len(x)) or embed(self, x, *a))
    model(images_of())
    assert sizes == [2, 2, 1, 1, 1]


@torch.no_grad()
def test_no_images(family):
    model = model_of(family)
    found = model([])
    assert found.keys() == model(torch.zeros(0, 3, 32, 32)).keys()
    assert all(value == [] for value in found.values())
    assert model.get_features([]).shape == (0, model.config.hidden_size)


def test_gradients_of_a_list_are_those_of_its_images():
    model, images = model_of("vit"), images_of()
    torch.stack(model(images).projection).square().sum().backward()
    found = model.backbone.cls_token.grad.clone()
    model.zero_grad()
    for image in images:
        model(image[None]).projection.square().sum().backward()
    torch.testing.assert_close(found, model.backbone.cls_token.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 3, 32, 32), r"\[1\] has the shape \(1, 3, 32, 32\), expected \(3, height, width\) of at"),
        (torch.zeros(4, 32, 32), r"pixel_values\[1\] has the shape \(4, 32, 32\)"),
        (torch.zeros(32, 32), r"pixel_values\[1\] has the shape \(32, 32\)"),
        (torch.zeros(3, 32, 7), r"pixel_values\[1\] has the shape \(3, 32, 7\), .* at least 8 pixels each way"),
        (torch.zeros(3, 32, 32).numpy(), r"pixel_values\[1\] is no tensor but ndarray"),
        (None, r"pixel_values\[1\] is no tensor but NoneType"),
        (torch.zeros(3, 40, 40, dtype=torch.uint8), "pixel_values are torch.uint8: scale and normalise"),
    ],
)
def test_an_image_that_does_not_fit_is_named(wrong, message):
    model = model_of("vit")
    for compute in (model, model.get_features):
        with pytest.raises(ValueError, match=message) as error:
            compute([torch.randn(3, 32, 32), wrong])
        assert "\n" not in str(error.value)


def test_where_a_list_cannot_be_taken():
    model, images = model_of("dinov2"), images_of()
    with pytest.raises(ValueError, match=r"bool_masked_pos .* stack images of one size"):
        model(images, bool_masked_pos=torch.zeros(len(images), 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="pixel_values are a list, which only forward and get_features"):
        model.get_intermediate_layers(images)


@torch.no_grad()
def test_what_asks_for_tuples_or_the_signature():
    """transformers finds labels and inputs by the arguments of `forward`."""
    model, images = model_of("vit"), images_of()
    found = model(pixel_values=images, return_dict=False)
    assert isinstance(found, tuple)
    assert list(map(len, found)) == [len(images)] * len(model(images))
    assert list(inspect.signature(model.forward).parameters)[:2] == ["pixel_values", "bool_masked_pos"]


@torch.no_grad()
def test_what_the_image_processor_does_not_crop(family):
    """By transformers' own arguments; images that end up with one size are one tensor, as ever."""
    model = model_of(family)
    processor = DinoImageProcessor(**image_processor_config(model.config))
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((60, 40), (41, 52), (60, 40), (90, 41))]
    for options, sizes in (
        ({"do_resize": False}, [(40, 60), (52, 41), (40, 60), (41, 90)]),
        ({"do_resize": False, "do_rescale": False}, [(40, 60), (52, 41), (40, 60), (41, 90)]),
        ({"size": {"shortest_edge": 36}, "do_resize": True}, [(36, 54), (45, 36), (36, 54), (36, 79)]),
    ):
        inputs = processor(pictures, do_center_crop=False, return_tensors="pt", **options)
        assert isinstance(inputs["pixel_values"], list)
        assert [tuple(x.shape[1:]) for x in inputs["pixel_values"]] == sizes
        arrays = processor(pictures, do_center_crop=False, return_tensors="np", **options)["pixel_values"]
        for tensor, array, picture in zip(inputs["pixel_values"], arrays, pictures, strict=True):
            alone = processor(picture, do_center_crop=False, return_tensors="pt", **options)["pixel_values"]
            assert torch.equal(tensor, alone[0])
            assert torch.equal(tensor, torch.from_numpy(array))
        found = model(**inputs.to("cpu", torch.float32)).pooler_output
        assert len(found) == len(pictures)
        torch.testing.assert_close(torch.stack(found), model.get_features(**inputs), rtol=0, atol=1e-4)
    same = processor([pictures[0], pictures[2]], do_center_crop=False, do_resize=False, return_tensors="pt")
    assert same["pixel_values"].shape == (2, 3, 40, 60)
    assert processor(pictures, return_tensors="pt")["pixel_values"].shape == (4, 3, 32, 32)
