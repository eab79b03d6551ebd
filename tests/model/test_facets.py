"""Queries, keys, values and tokens of a block, against hooks on the block and against `F.linear` by hand."""

import pytest
import torch
from tiny_models import ALL_BACKBONES, tiny_config
from torch.nn.functional import linear

from modeling_dino import DinoModel
from modeling_dino.positions import rotate


pytestmark = pytest.mark.usefixtures("one_thread")
WITH_FACETS = ("vit", "dinov2", "dinov3", "xcit")
PREFIX = {"vit": 1, "dinov2": 4, "dinov3": 3, "xcit": 0}  # CLS token and registers; none in an XCiT's blocks
PARTS = ("query", "key", "value")  # in the order of the fused linear
DEPTH = 3


@pytest.fixture(params=WITH_FACETS)
def kind(request) -> str:
    return request.param


def model_of(kind: str, **options) -> DinoModel:
    """With biases that are not zero, as those of trained weights."""
    model = DinoModel(tiny_config(kind, **options)).eval()
    for block in model.backbone.blocks:
        if block.attn.qkv.bias is not None:
            torch.nn.init.normal_(block.attn.qkv.bias)
    return model


def seen_by_hooks(model: DinoModel, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """What a forward pass shows to hooks: of each block its input, the output of `qkv`, and its own output."""
    seen = [{} for _ in model.backbone.blocks]

    def record(place: dict, name: str):
        return lambda module, inputs, output: place.update({name: output.clone(), f"{name} input": inputs[0].clone()})

    hooks = []
    for block, place in zip(model.backbone.blocks, seen):
        hooks += [block.attn.qkv.register_forward_hook(record(place, "qkv"))]
        hooks += [block.register_forward_hook(record(place, "token"))]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def heads(qkv: torch.Tensor, part: str, num_heads: int = 4) -> torch.Tensor:
    """The columns of one part in the output of `qkv`, head by head: (B, T, 3 * D) -> (B, heads, T, d)."""
    width = qkv.shape[-1] // 3
    start = PARTS.index(part) * width
    columns = qkv[..., start : start + width].chunk(num_heads, dim=-1)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("layer", range(-DEPTH, DEPTH))
@torch.no_grad()
def test_facets_are_what_hooks_see(kind, layer):
    model, images = model_of(kind), torch.randn(2, 3, 40, 56)
    seen = seen_by_hooks(model, images)[layer]
    for part in PARTS:
        assert torch.equal(model.get_facets(images, part, layer), heads(seen["qkv"], part))
    assert torch.equal(model.get_facets(images, "token", layer), seen["token"])


@torch.no_grad()
def test_the_key_of_the_last_block_is_the_default(kind):
    model, images = model_of(kind), torch.randn(1, 3, 32, 32)
    assert torch.equal(model.get_facets(images), model.get_facets(images, facet="key", layer=DEPTH - 1))


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"key_bias": False}])
@torch.no_grad()
def test_facets_are_a_linear_of_the_normed_input(options):
    """Worked anew from the weights; without a key bias, the bias that is stored for it has no effect."""
    model, images = model_of("dinov3" if "key_bias" in options else "vit", **options), torch.randn(2, 3, 32, 48)
    block = model.backbone.blocks[1]
    before = seen_by_hooks(model, images)[1]["token input"]
    tokens = torch.nn.functional.layer_norm(before, (32,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    for i, part in enumerate(PARTS):
        bias = None if block.attn.qkv.bias is None else block.attn.qkv.bias[32 * i : 32 * (i + 1)]
        if part == "key" and "key_bias" in options:
            assert bias.abs().max() > 0.1
            bias = None
        flat = linear(tokens, block.attn.qkv.weight[32 * i : 32 * (i + 1)], bias)
        for head in range(4):
            found = model.get_facets(images, part, 1)[:, head]
            torch.testing.assert_close(found, flat[..., 8 * head : 8 * (head + 1)], rtol=0, atol=1e-6)


@torch.no_grad()
def test_facets_are_those_before_the_rotation():
    """Those of a DINOv3 give its attention when they are rotated, and not without."""
    model, images = model_of("dinov3"), torch.randn(1, 3, 32, 48)
    query, key = model.get_facets(images, "query"), model.get_facets(images, "key")
    (expected,) = model.get_attention_maps(images)
    angles = model.backbone.angles(images)
    scores = rotate(query, angles) @ rotate(key, angles).transpose(-2, -1) / 8**0.5
    torch.testing.assert_close(scores.softmax(-1), expected)
    assert ((query @ key.transpose(-2, -1) / 8**0.5).softmax(-1) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("facet", [*PARTS, "token"])
@torch.no_grad()
def test_maps_have_the_patches_alone(kind, facet):
    """Patch by patch, one head's channels after another's; no register is among the patches."""
    model, images = model_of(kind), torch.randn(2, 3, 32, 48)
    facets, maps = model.get_facets(images, facet, 1), model.get_facets(images, facet, 1, reshape=True)
    assert maps.shape == (2, 32, 4, 6)
    assert maps.is_contiguous()
    before = PREFIX[kind]
    assert facets.shape[-2] == before + 24
    for row in range(4):
        for column in range(6):
            expected = facets[..., before + 6 * row + column, :].reshape(2, 32)
            assert torch.equal(maps[:, :, row, column], expected)


@torch.no_grad()
def test_a_size_that_the_patch_does_not_divide(kind):
    """A ViT crops it, and an XCiT rounds it up."""
    maps = model_of(kind).get_facets(torch.randn(1, 3, 37, 43), reshape=True)
    assert maps.shape == (1, 32, *((5, 6) if kind == "xcit" else (4, 5)))


@torch.no_grad()
def test_no_images(kind):
    model, none = model_of(kind), torch.randn(0, 3, 32, 40)
    assert model.get_facets(none).shape == (0, 4, PREFIX[kind] + 20, 8)
    assert model.get_facets(none, "token", reshape=True).shape == (0, 32, 4, 5)


@torch.no_grad()
def test_later_blocks_are_not_computed(kind):
    model, ran = model_of(kind), []
    for i, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    for facet, blocks in (("key", [0]), ("token", [0, 1])):
        ran.clear()
        model.get_facets(torch.randn(1, 3, 32, 32), facet, 1)
        assert ran == blocks


def test_gradients_reach_the_images(kind):
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    model_of(kind).get_facets(images, "value", 1, reshape=True).square().sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", sorted(set(ALL_BACKBONES) - set(WITH_FACETS)))
def test_other_backbones_are_refused(kind):
    model = DinoModel(tiny_config(kind))
    with pytest.raises(ValueError, match=f"{model.config.backbone} has no queries, keys and values: use a ViT or"):
        model.get_facets(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keys",), "unknown facet 'keys': allowed are query, key, value, token"),
        (("key", 3), r"no such layers, \[3\]: vit_tiny has layers 0 to 2"),
        (("token", -4), r"no such layers, \[-4\]: vit_tiny has layers 0 to 2"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of("vit").get_facets(torch.randn(1, 3, 32, 32), *arguments)
