"""The ConvNeXt of DINOv3, against numbers of the original."""

import pytest
import torch
from golden_data import assert_close, read_golden, with_prefix
from later_dinos import golden_model

from modeling_dino import DinoConfig, DinoModel


METADATA, TENSORS = read_golden("dinov3_convnext")
SIZES = ["x".join(map(str, size)) for size in METADATA["sizes"]]
STATE = with_prefix(TENSORS, "state_dict.")


@pytest.fixture(scope="module")
def model() -> DinoModel:
    return golden_model(METADATA["convnext"], STATE)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features(size, prepared):
    model = golden_model(METADATA["convnext"], STATE)
    if prepared:
        model.prepare_for_inference()
    output = model(TENSORS[f"input.{size}"], output_hidden_states=True)
    assert_close(output.pooler_output, TENSORS[f"x_norm_clstoken.{size}"])
    assert_close(output.last_hidden_state[:, 0], TENSORS[f"x_norm_clstoken.{size}"])
    assert_close(output.patch_tokens, TENSORS[f"x_norm_patchtokens.{size}"])
    assert_close(output.hidden_states[-1].flatten(2).transpose(1, 2), TENSORS[f"x_prenorm.{size}"])
    assert_close(model.get_features(TENSORS[f"input.{size}"]), output.pooler_output)
    assert len(output.hidden_states) == 1 + len(METADATA["convnext"]["depths"])
    for i, hidden_state in enumerate(output.hidden_states[1:]):
        raw = TENSORS.get(f"no_patch_size.intermediate.raw.{i}.patches.{size}")
        if raw is not None:
            assert_close(hidden_state, raw)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("kind", sorted(METADATA["intermediate"]))
@torch.no_grad()
def test_intermediate_layers(kind, normed):
    facts = METADATA["intermediate"][kind]
    model = golden_model(METADATA["convnext"], STATE, patch_size=facts["patch_size"])
    expected = with_prefix(TENSORS, f"{kind}.intermediate.{'normed' if normed else 'raw'}.")
    sizes = [key.removeprefix("0.cls.") for key in expected if key.startswith("0.cls.")]
    assert sizes
    for size in sizes:
        images = TENSORS[f"input.{size}"]
        layers = model.get_intermediate_layers(images, facts["n"], reshape=True, return_class_token=True, norm=normed)
        for i, (patches, cls) in enumerate(layers):
            assert_close(patches, expected[f"{i}.patches.{size}"])
            assert_close(cls, expected[f"{i}.cls.{size}"])
        if normed:
            for i, cls in enumerate(model.get_cls_tokens(images, facts["n"])):
                assert_close(cls, expected[f"{i}.cls.{size}"])


@torch.no_grad()
def test_maps_are_made_smaller_with_antialias():
    """The golden maps are only made larger."""
    model = golden_model(METADATA["convnext"], STATE, patch_size=16)
    images = TENSORS[f"input.{SIZES[0]}"]
    first = model(images, output_hidden_states=True).hidden_states[1]
    expected = torch.nn.functional.interpolate(first, scale_factor=1 / 4, mode="bilinear", antialias=True)
    ((patches, cls),) = model.get_intermediate_layers(images, [0], reshape=True, return_class_token=True)
    assert_close(patches, expected)
    assert_close(cls, first.mean((2, 3)))


@torch.no_grad()
def test_equals_transformers():
    """With its own random weights, at several sizes."""
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    theirs = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1])).eval()
    for parameter in theirs.parameters():
        parameter.uniform_(-0.5, 0.5)
    config = DinoConfig(
        backbone="convnext_tiny", hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], image_size=64, head_type=None
    )
    ours = DinoModel(config).eval()
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        name = name.replace("layer_norm", "norm").replace("depthwise_conv", "dwconv").replace("pointwise_", "pw")
        stage, _, rest = name.removeprefix("model.stages.").partition(".")
        kind, _, rest = rest.partition(".")
        folder = {"downsample_layers": "downsample_layers", "layers": "stages"}.get(kind)
        renamed[f"{folder}.{stage}.{rest}" if folder else name] = tensor
    ours.backbone.load_state_dict(renamed)
    for size in [(64, 64), (45, 70)]:
        images = torch.randn(2, 3, *size)
        expected, output = theirs(images), ours(images)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert_close(output.pooler_output, expected.pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_sizes_are_those_of_timm(size):
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(f"convnext_{size}", num_classes=0)
        ours = DinoModel(DinoConfig(backbone=f"convnext_{size}", head_type=None))
    assert ours.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())


@torch.no_grad()
def test_initialisation():
    backbone = DinoModel(DinoConfig(backbone="convnext_tiny", depths=[1, 1, 1, 1], head_type=None)).backbone
    block = backbone.stages[-1][0]
    assert (block.gamma == torch.tensor(1e-6)).all()
    for weight in (block.pwconv1.weight, block.dwconv.weight, backbone.downsample_layers[1][1].weight):
        assert abs(weight.std() - 0.02) < 1e-3
    assert (block.dwconv.bias == 0).all()


def test_drop_path_rises_linearly_over_all_stages(model):
    config = DinoConfig(backbone="convnext_tiny", hidden_sizes=[8] * 4, depths=[1, 2, 1, 1], drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in DinoModel(config).backbone.stages for block in stage]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.4, 5))


def test_an_image_that_is_too_small_is_refused(model):
    with pytest.raises(ValueError, match="an image of 31x40 pixels is smaller than 32x32: resize it"):
        model(torch.randn(1, 3, 31, 40))


def test_it_has_no_attention(model):
    images = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="convnext_tiny has no attention"):
        model.get_attention_maps(images)
    with pytest.raises(ValueError, match="convnext_tiny has no attention: use a ViT or an XCiT"):
        model.get_cls_attention(images)
