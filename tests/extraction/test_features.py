import pytest
import torch
from tiny_models import LATER_BACKBONES, tiny_config

from modeling_dino import DinoModel
from modeling_dino.extraction.features import feature_columns, gem, image_features


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


@pytest.mark.parametrize("p", [1.0, 3.0, 4.0])
def test_generalised_means_are_power_average_pooling(images, p, family):
    """PyTorch's pooling is a sum, of what the original keeps above 1e-6."""
    model = DinoModel(tiny_config(family)).eval()
    maps = model.get_intermediate_layers(images, n=2, reshape=True)
    maps = [m.clamp(min=1e-6) for m in maps]  # (2, D, h, w)
    size = maps[-1].shape[2:]
    expected = [torch.nn.functional.lp_pool2d(m, p, size).flatten(1) / size.numel() ** (1 / p) for m in maps]
    found = image_features(model, images, ["gem", "cls_gem", "cls"], gem_p=p)
    torch.testing.assert_close(found["gem"], expected[-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["cls_gem"], torch.cat([found["cls"], found["gem"]], -1), rtol=0, atol=1e-6)
    if family == "vit":
        two = image_features(model, images, ["gem", "cls_gem", "cls"], 2, p)
        torch.testing.assert_close(two["gem"], torch.cat(expected, -1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two["cls_gem"], torch.cat([two["cls"], expected[-1]], -1), rtol=1e-5, atol=1e-6)


def test_a_generalised_mean_worked_by_hand():
    """(1 + 0 + 0 + 0) / 4 to the power of a half, negatives being nothing; in half precision, too."""
    tokens = torch.tensor([[[1.0, -3.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(gem(tokens, 2), torch.tensor([[0.5, 1e-6]]))
    torch.testing.assert_close(gem(tokens.half(), 2), torch.tensor([[0.5, 1e-6]]).half())
    assert gem(1e-3 * tokens.half(), 4)[0, 0] == pytest.approx(1e-3 * 0.25**0.25, rel=1e-3)


def test_several_scales_as_the_original(images, family):
    """Its sum over scales 1, 1/√2 and 1/2, divided by 3; it then normalises, which is left to who compares."""
    model = DinoModel(tiny_config(family)).eval()
    scales = (1, 2**-0.5, 0.5)
    total = 0
    for scale in scales:
        size = [int(side * scale) for side in images.shape[2:]]
        # the coordinates are those of the scale that was asked for, not of the sizes after rounding
        theta = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(2, -1, -1)
        grid = torch.nn.functional.affine_grid(theta, (2, 3, *size), align_corners=False)
        grid = (grid + 1) * torch.tensor([size[1], size[0]]) / scale / torch.tensor([48, 32]) - 1
        resized = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        total = total + model(resized).pooler_output
    found = image_features(model, images, "cls", scales=scales)
    torch.testing.assert_close(found, total / 3, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="patches differ in number from scale to scale"):
        image_features(model, images, "patches", scales=scales)


def test_features_of_a_resnet(images):
    model = DinoModel(tiny_config("resnet")).eval()
    output = model(images)
    assert torch.equal(image_features(model, images), output.pooler_output)
    assert torch.equal(image_features(model, images, "projection"), output.projection)
    patches = image_features(model, images, "patches")
    assert patches.shape == (2, 4 * 6, 64)
    torch.testing.assert_close(patches.mean(1), output.pooler_output)


@pytest.mark.parametrize("family", sorted(LATER_BACKBONES))
@torch.no_grad()
def test_features_of_later_dinos_have_no_registers(images, family):
    """Each is that of the output of the model; patches are those of the image, without CLS token and registers."""
    model = DinoModel(tiny_config(family)).eval()
    output, kinds = model(images), ("cls", "patch_mean", "cls_patch_mean", "patches", "projection")
    features = image_features(model, images, kinds)
    torch.testing.assert_close(features["cls"], output.pooler_output)
    torch.testing.assert_close(features["patches"], output.patch_tokens)
    torch.testing.assert_close(features["patch_mean"], output.patch_tokens.mean(1))
    torch.testing.assert_close(features["projection"], output.projection)
    height, width = model.backbone.grid(images)
    assert features["patches"].shape[1] == height * width


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3", "xcit"])
@torch.no_grad()
def test_facets_are_those_of_the_model_at_the_patches(images, family):
    """The vector of a patch has the heads side by side; facets go with other kinds."""
    model = DinoModel(tiny_config(family)).eval()
    facets = {"keys@1": ("key", 1), "queries@-2": ("query", 1), "values@0": ("value", 0), "tokens@-1": ("token", 2)}
    features = image_features(model, images, ["cls", *facets, "patches"])
    assert list(features) == ["cls", *facets, "patches"]
    for kind, (facet, layer) in facets.items():
        found = model.get_facets(images, facet, layer)[..., -24:, :]
        expected = found if facet == "token" else torch.cat(found.unbind(1), dim=-1)
        assert torch.equal(features[kind], expected)
        assert torch.equal(image_features(model, images, kind), expected)
    torch.testing.assert_close(features["cls"], model(images).pooler_output)


def test_names_of_columns():
    """A single kind is `feature`; the names of several can be written in SQL as they are."""
    assert feature_columns("keys@9") == {"feature": "keys@9"}
    columns = feature_columns("cls, keys@9,tokens@-1")
    assert columns == {"feature_cls": "cls", "feature_keys_9": "keys@9", "feature_tokens_minus_1": "tokens@-1"}
    assert all(column.isidentifier() for column in columns)


@pytest.mark.parametrize(
    ("family", "options", "arguments", "message"),
    [
        ("vit", {}, ("class",), "unknown features 'class': allowed are cls, patch_mean"),
        ("vit", {}, ("class",), "projection, keys@LAYER, queries@LAYER, values@LAYER, tokens@LAYER"),
        ("vit", {}, ("keys",), "unknown features 'keys'"),
        ("vit", {}, ("key@1",), "unknown features 'key@1'"),
        ("vit", {}, ("cls@1",), "unknown features 'cls@1'"),
        ("vit", {}, ("keys@",), "unknown features 'keys@'"),
        ("vit", {}, ("keys@1.5",), "unknown features 'keys@1.5'"),
        ("vit", {}, ("keys@3",), r"no such layers, \[3\]: vit_tiny has layers 0 to 2"),
        ("vit", {}, ("tokens@-4",), r"no such layers, \[-4\]: vit_tiny has layers 0 to 2"),
        ("vit", {}, ("keys@1", 2), "keys@1 features are of one block alone: leave out last_blocks"),
        ("vit", {}, ("keys@1", 1, 4.0, (1.0, 0.5)), "patches differ in number from scale to scale"),
        ("resnet", {}, ("keys@1",), "resnet50 has no queries, keys and values: use a ViT or an XCiT"),
        ("convnext", {}, ("tokens@1",), "convnext_tiny has no queries, keys and values"),
        ("vit", {}, ("cls", 0), "last_blocks=0 must be between 1 and 3"),
        ("vit", {}, ("cls", 4), "last_blocks=4 must be between 1 and 3"),
        ("vit", {"head_type": None}, ("projection",), "the model has no projection head"),
        ("vit", {}, ("projection", 2), "the projection is of the last block alone"),
        ("resnet", {}, ("patch_mean",), "resnet50 has cls"),
        ("resnet", {}, ("cls", 2), "resnet50 has cls"),
        ("convnext", {}, ("cls", 2), "last_blocks=2 must be 1 for convnext_tiny, whose stages differ in width"),
        ("vit", {}, ("gem", 1, 0.0), "gem_p=0.0 must be greater than 0"),
        ("vit", {}, ("gem", 1, float("inf")), "gem_p=inf must be"),
        ("vit", {}, ("cls", 1, 4.0, ()), "give one or more, each greater than 0"),
        ("vit", {}, ("cls", 1, 4.0, (1.0, -0.5)), r"scales=\[1.0, -0.5\]: give one or more"),
    ],
)
def test_features_a_model_does_not_have_are_refused(images, family, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_features(DinoModel(tiny_config(family, **options)), images, *arguments)
