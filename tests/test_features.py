import pytest
import torch
from conftest import tiny_config

from modeling_dino import DinoModel
from modeling_dino.features import image_features


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48)


def test_features_of_a_vit(images):
    model = DinoModel(tiny_config()).eval()
    tokens = [model.backbone.norm(state) for state in model(images, output_hidden_states=True).hidden_states]
    last, cls = tokens[-1], [layer[:, 0] for layer in tokens]
    means = [layer[:, 1:].mean(1) for layer in tokens]

    def check(expected, *arguments):
        torch.testing.assert_close(image_features(model, images, *arguments), expected, rtol=0, atol=1e-6)

    check(model(images).pooler_output)
    check(model(images).pooler_output, "cls")
    check(torch.cat(cls[-2:], -1), "cls", 2)
    check(means[-1], "patch_mean")
    check(torch.cat(means[-3:], -1), "patch_mean", 3)
    check(torch.cat([cls[-1], means[-1]], -1), "cls_patch_mean")
    check(torch.cat([*cls[-2:], means[-1]], -1), "cls_patch_mean", 2)
    check(last[:, 1:], "patches")
    check(torch.cat([layer[:, 1:] for layer in tokens[-2:]], -1), "patches", 2)
    check(model(images).projection, "projection")


def test_features_of_a_resnet(images):
    model = DinoModel(tiny_config("resnet")).eval()
    output = model(images)
    assert torch.equal(image_features(model, images), output.pooler_output)
    assert torch.equal(image_features(model, images, "projection"), output.projection)
    patches = image_features(model, images, "patches")
    assert patches.shape == (2, 4 * 6, 64)
    torch.testing.assert_close(patches.mean(1), output.pooler_output)


@pytest.mark.parametrize(
    ("family", "options", "arguments", "message"),
    [
        ("vit", {}, ("class",), "unknown features 'class': allowed are cls, patch_mean"),
        ("vit", {}, ("cls", 0), "last_blocks=0 must be between 1 and 3"),
        ("vit", {}, ("cls", 4), "last_blocks=4 must be between 1 and 3"),
        ("vit", {"head_type": None}, ("projection",), "the model has no projection head"),
        ("vit", {}, ("projection", 2), "the projection is of the last block alone"),
        ("resnet", {}, ("patch_mean",), "resnet50 has cls"),
        ("resnet", {}, ("cls", 2), "resnet50 has cls"),
    ],
)
def test_features_a_model_does_not_have_are_refused(images, family, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_features(DinoModel(tiny_config(family, **options)), images, *arguments)
