import pytest
import timm
import torch
from golden_data import assert_close, read_golden, with_prefix
from tiny_models import tiny_config

from modeling_dino import DinoConfig, DinoModel


METADATA, TENSORS = read_golden("vit")
SIZES = ["x".join(map(str, size)) for size in METADATA["sizes"]]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def golden_model(request) -> DinoModel:
    config = DinoConfig(head_type=None, **METADATA["vit"])
    config._attn_implementation = request.param
    model = DinoModel(config).eval()
    model.backbone.load_state_dict(with_prefix(TENSORS, "state_dict."))
    return model


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_golden_feature(golden_model, size):
    output = golden_model(TENSORS[f"input.{size}"])
    assert_close(output.pooler_output, TENSORS[f"cls.{size}"])
    assert_close(output.last_hidden_state[:, 0], TENSORS[f"cls.{size}"])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_golden_intermediate_layers(golden_model, size):
    depth = METADATA["vit"]["num_hidden_layers"]
    images = TENSORS[f"input.{size}"]
    expected = [TENSORS[f"intermediate.{i}.{size}"] for i in range(depth)]
    for layer, tokens in enumerate(golden_model.get_intermediate_layers(images, n=depth)):
        assert_close(tokens, expected[layer])
    for layer in range(depth):
        ((patches, cls),) = golden_model.get_intermediate_layers(images, n=[layer], return_class_token=True)
        assert_close(cls, expected[layer][:, 0])
        assert_close(patches, expected[layer][:, 1:])
    for n in range(1, depth + 1):
        for layer, cls in zip(range(depth - n, depth), golden_model.get_cls_tokens(images, n=n), strict=True):
            assert_close(cls, expected[layer][:, 0])
    (feature_map,) = golden_model.get_intermediate_layers(images, reshape=True)
    height, width = (side // METADATA["vit"]["patch_size"] for side in images.shape[-2:])
    assert feature_map.shape == (len(images), METADATA["vit"]["hidden_size"], height, width)
    assert_close(feature_map.flatten(2).transpose(1, 2), expected[-1][:, 1:])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_golden_attention(golden_model, size):
    images, expected = TENSORS[f"input.{size}"], TENSORS[f"last_attention.{size}"]
    assert_close(golden_model.get_attention_maps(images)[0], expected)
    assert_close(golden_model(images, output_attentions=True).attentions[-1], expected)
    cls_attention = golden_model.get_cls_attention(images)
    assert cls_attention.shape[-2:] == golden_model.backbone.grid(images)
    assert_close(cls_attention.flatten(2), expected[:, :, 0, 1:])


@torch.no_grad()
def test_attention_maps_come_in_the_order_asked(golden_model):
    images = TENSORS[f"input.{SIZES[0]}"]
    attentions = golden_model(images, output_attentions=True).attentions
    last, first = golden_model.get_attention_maps(images, layers=(-1, 0))
    assert_close(last, attentions[-1])
    assert_close(first, attentions[0])


@torch.no_grad()
def test_native_grid_in_an_image_that_is_not_square():
    """The original goes through the 0.1 here (its condition is on pixels), checked by its own call."""
    config = DinoConfig(backbone="vit_tiny", hidden_size=24, num_hidden_layers=1, image_size=32, patch_size=8)
    backbone = DinoModel(config).backbone
    images = torch.randn(1, 3, 33, 32)
    grid = backbone.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, scale_factor=(4.1 / 4, 4.1 / 4), mode="bicubic")
    positions = torch.cat([backbone.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    patches = backbone.patch_embed(images)
    tokens = torch.cat([backbone.cls_token, patches], dim=1) + positions
    assert_close(backbone.embed(images), tokens, 1e-6)
    assert not torch.allclose(positions, backbone.pos_embed, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "small", "base", "large"])
@torch.no_grad()
def test_equals_timm(name):
    """timm's models with their own random weights, at the native size and, with its interpolation, at others."""
    theirs = timm.create_model(f"vit_{name}_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    config = DinoConfig(backbone=f"vit_{name}", head_type=None, position_interpolation="antialias")
    with torch.device("meta"):  # drawing weights takes seconds
        ours = DinoModel(config).eval()
    ours.backbone.load_state_dict(theirs.state_dict(), assign=True)
    for height, width in [(224, 224), (96, 160)]:
        images = torch.randn(1, 3, height, width)
        assert_close(ours(images).last_hidden_state, theirs.forward_features(images))


@pytest.mark.parametrize(("method", "antialias"), [("size", False), ("antialias", True)])
@torch.no_grad()
def test_positions_equal_timms_resampling(method, antialias):
    from timm.layers import resample_abs_pos_embed

    config = DinoConfig(backbone="vit_tiny", image_size=64, num_hidden_layers=1, position_interpolation=method)
    backbone = DinoModel(config).backbone
    images = torch.zeros(1, 3, 48, 112)
    expected = resample_abs_pos_embed(backbone.pos_embed, [3, 7], [4, 4], antialias=antialias)
    embedded = backbone.embed(images) - torch.cat([backbone.cls_token, backbone.patch_embed(images)], dim=1)
    assert_close(embedded, expected)


PARAMETERS = {"vit_tiny": 5524416, "vit_small": 21665664, "vit_base": 85798656, "vit_large": 303301632}


@pytest.mark.parametrize("backbone", sorted(PARAMETERS))
def test_number_of_parameters(backbone):
    with torch.device("meta"):
        model = DinoModel(DinoConfig(backbone=backbone, head_type=None))
    assert model.num_parameters() == PARAMETERS[backbone]


def test_drop_path_rises_linearly_and_skips_whole_images():
    config = DinoConfig(backbone="vit_tiny", drop_path_rate=0.3)
    blocks = DinoModel(config).backbone.blocks
    rates = torch.tensor([block.drop_path.rate for block in blocks])
    torch.testing.assert_close(rates, torch.linspace(0, 0.3, 12))
    kept = blocks[-1].drop_path.train()(torch.ones(10000, 2, 3))
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean() - 1) < 0.03
    assert (blocks[-1].drop_path.eval()(torch.ones(10, 2, 3)) == 1).all()


def residual_stochastic_depth(hidden_states: torch.Tensor, branch, rate: float) -> torch.Tensor:
    """The definition of DINOv2's drop path for lists of crops: a part of the images takes the branch, scaled up."""
    count = max(int(len(hidden_states) * (1 - rate)), 1)
    kept = torch.randperm(len(hidden_states))[:count]
    weights = torch.zeros(len(hidden_states), dtype=hidden_states.dtype)
    weights[kept] = len(hidden_states) / count
    return hidden_states + weights.view(-1, 1, 1) * branch(hidden_states)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize("cls_only", [False, True])
def test_uniform_drop_path_is_that_of_dinov2(family, cls_only):
    """Values and gradients of a block are those of its definition, which computes the images that skip it, too."""
    config = tiny_config(family, drop_path_rate=0.45, drop_path_uniform=True)
    model = DinoModel(config).double().train()
    block, images = model.backbone.blocks[1], torch.randn(5, 3, 32, 32, dtype=torch.float64)
    angles = model.backbone.angles(images)
    tokens = model.backbone.embed(images).detach().requires_grad_()
    torch.manual_seed(1)
    output = block(tokens, cls_only=cls_only, angles=angles)
    torch.manual_seed(1)
    expected = residual_stochastic_depth(
        tokens, lambda x: block.ls1(block.attn(block.norm1(x), angles=angles)[0]), 0.45
    )
    expected = residual_stochastic_depth(expected, lambda x: block.ls2(block.mlp(block.norm2(x))), 0.45)
    expected = expected[:, :1] if cls_only else expected
    assert_close(output, expected, tolerance=1e-12)
    sought = [tokens, *(p for name, p in block.named_parameters() if not name.endswith("qkv.bias"))]
    gradients = [torch.autograd.grad(x.square().sum(), sought) for x in (output, expected)]
    for own, wanted in zip(*gradients):
        assert_close(own, wanted, tolerance=1e-11)


def test_images_that_skip_a_branch_are_not_computed():
    config = tiny_config("dinov2", drop_path_rate=0.3, drop_path_uniform=True)
    model, seen = DinoModel(config), []
    for block in model.backbone.blocks:
        for part in (block.attn, block.mlp):
            part.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for batch_size, count in ((10, 7), (4, 2), (1, 1), (0, 0)):
        for mode, expected in ((True, count), (False, batch_size)):
            model.train(mode)(torch.randn(batch_size, 3, 32, 32))
            assert seen == [expected] * 2 * len(model.backbone.blocks)
            seen.clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_uniform_drop_path_keeps_the_dtype_of_plain_training(dtype):
    """Of a model in half precision, and in autocast, where branches and tokens are of different dtypes."""
    images, dtypes = torch.randn(4, 3, 32, 32), []
    for uniform in (False, True):
        model = DinoModel(tiny_config("dinov2", drop_path_rate=0.5, drop_path_uniform=uniform)).to(dtype).train()
        with torch.autocast("cpu", enabled=dtype == torch.float32):
            output = model(images).last_hidden_state
        output.sum().backward()
        dtypes.append(output.dtype)
    assert dtypes[0] == dtypes[1]


@torch.no_grad()
def test_initialisation():
    backbone = DinoModel(DinoConfig(backbone="vit_tiny", head_type=None)).backbone
    block = backbone.blocks[0]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, backbone.pos_embed):
        assert abs(weight.std() - 0.02) < 1e-3
    assert 0.01 < backbone.cls_token.std() < 0.03
    assert (block.attn.qkv.bias == 0).all()
    assert (backbone.norm.weight == 1).all()
    assert (backbone.norm.bias == 0).all()
    default = torch.nn.Conv2d(3, 192, 16, stride=16)
    assert abs(backbone.patch_embed.proj.weight.std() / default.weight.std() - 1) < 0.02
    assert backbone.patch_embed.proj.weight.abs().max() <= 768**-0.5
    assert backbone.patch_embed.proj.bias.abs().max() > 0


def test_dropout_acts_in_training_alone():
    config = DinoConfig(backbone="vit_tiny", image_size=32, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    model = DinoModel(config)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images)[0], model(images)[0])
    assert torch.equal(model.eval()(images)[0], model(images)[0])


def test_an_image_smaller_than_a_patch_is_refused():
    model = DinoModel(DinoConfig(backbone="vit_tiny", head_type=None))
    with pytest.raises(ValueError, match="an image of 15x40 pixels is smaller than a patch of 16x16"):
        model(torch.randn(1, 3, 15, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_trained_on_a_cpu_without_fused_attention(monkeypatch, dtype):
    """Which takes longer there; gradients differ by rounding alone."""
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(*args, **kwargs):
        calls.append(args)
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model, images, found = DinoModel(tiny_config()), torch.randn(2, 3, 32, 32), []
    parameters = list(model.backbone.blocks.parameters())
    for training in (True, False):
        calls.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model.train(training)(images).last_hidden_state.float().square().sum()
        found.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)]))
        assert bool(calls) == (dtype == torch.float32 or not training)
    difference = (found[0] - found[1]).norm() / found[1].norm()
    assert difference < (1e-6 if dtype == torch.float32 else 2e-2)
