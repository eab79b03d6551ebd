"""XCiT, against numbers of the original."""

import copy

import pytest
import torch
from golden_data import assert_close, read_golden, with_prefix
from later_dinos import config_of, golden_model

from modeling_dino import DinoConfig, DinoModel


METADATA, TENSORS = read_golden("xcit")
NAMES = sorted(name for name in METADATA if name != "sizes")


def model_of(name: str) -> DinoModel:
    return golden_model(METADATA[name], with_prefix(TENSORS, f"{name}.state_dict."))


def sizes_of(name: str, quantity: str) -> list[str]:
    prefix = f"{name}.{quantity}."
    return [key.removeprefix(prefix) for key in TENSORS if key.startswith(prefix)]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features(name):
    model = model_of(name)
    for size in sizes_of(name, "cls"):
        images, expected = TENSORS[f"input.{size}"], TENSORS[f"{name}.cls.{size}"]
        output = model(images)
        assert_close(output.pooler_output, expected)
        assert_close(output.last_hidden_state[:, 0], expected)
        assert_close(model.get_features(images), expected)
        height, width = model.backbone.grid(images)
        assert output.patch_tokens.shape[1] == height * width


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_lies_between(name):
    model = model_of(name)
    for size in sizes_of(name, "last_tokens"):
        images, grid = TENSORS[f"input.{size}"], model.backbone.grid(TENSORS[f"input.{size}"])
        assert_close(model.backbone.patch_embed(images), TENSORS[f"{name}.patch_embed.{size}"])
        assert_close(model.backbone.pos_embeder(grid, images), TENSORS[f"{name}.positions.{size}"])
        hidden_states = model(images, output_hidden_states=True).hidden_states
        for i, hidden_state in enumerate(hidden_states[1:]):
            assert_close(hidden_state, TENSORS[f"{name}.block.{i}.{size}"])
        last = TENSORS[f"{name}.last_tokens.{size}"]
        (tokens,) = model.get_intermediate_layers(images, norm=False)
        assert_close(tokens, last)
        ((patches, cls),) = model.get_intermediate_layers(images, reshape=True, return_class_token=True)
        assert_close(cls, TENSORS[f"{name}.cls.{size}"])
        assert_close(patches, model.backbone.norm(last)[:, 1:].transpose(1, 2).unflatten(2, grid))


@pytest.mark.parametrize("name", NAMES)
def test_training(name):
    """Outputs, statistics of the batch norms and gradients in train mode."""
    model, expected = model_of(name).train(), with_prefix(TENSORS, f"{name}.train.")
    size = "x".join(map(str, METADATA[name]["train_size"]))
    feature = model(TENSORS[f"input.{size}"]).pooler_output
    assert_close(feature, expected["cls"])
    state = model.backbone.state_dict()
    for key, value in with_prefix(expected, "after.").items():
        assert_close(state[key], value)
    if "output_grad" in expected:
        feature.backward(expected["output_grad"])
        for key, value in with_prefix(expected, "grad.").items():
            assert_close(model.backbone.get_parameter(key).grad, value)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cls_attention(name):
    """Against the definition, on the tokens before the last block."""
    model = model_of(name)
    images = TENSORS[f"input.{sizes_of(name, 'cls')[-1]}"]
    backbone, layers = model.backbone, METADATA[name]["cls_attn_layers"]
    (patches,) = backbone.block_tokens(images, [len(backbone.blocks)])
    block = backbone.cls_attn_blocks[-1]
    tokens = block.norm1(backbone.attend_from_cls(patches, layers - 1))
    heads = METADATA[name]["num_heads"]
    query, key, _ = block.attn.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhd,bhtd->bht", query[:, :, 0], key) / (query.shape[-1] ** 0.5)
    attention = model.get_cls_attention(images)
    assert attention.shape[-2:] == backbone.grid(images)
    assert_close(attention.flatten(2), scores.softmax(-1)[:, :, 1:])
    patches, also = backbone.patch_tokens_and_attention(images)
    assert torch.equal(also, attention)
    assert_close(patches, model(images).patch_tokens)
    assert torch.equal(model.get_cls_attention(images, layers - 1), attention)
    with pytest.raises(ValueError, match=f"layers 0 to {layers - 1}"):
        model.get_cls_attention(images, layers)
    with pytest.raises(ValueError, match="has no attention"):
        model.get_attention_maps(images)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["xcit_nano_12", "xcit_tiny_24", "xcit_small_12", "xcit_medium_24"])
@pytest.mark.parametrize("patch_size", [8, 16])
@torch.no_grad()
def test_equals_timm(backbone, patch_size):
    """With timm's names and sizes, on its own random weights at an odd size, but of few blocks."""
    import timm

    width, heads = {"nano": (128, 4), "tiny": (192, 4), "small": (384, 8), "medium": (512, 8)}[backbone.split("_")[1]]
    name = f"{backbone}_p{patch_size}_224"
    theirs = timm.create_model(name, num_classes=0, depth=2, tokens_norm="nano" not in backbone).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    options = {"num_hidden_layers": 2, "tokens_norm": "nano" not in backbone, "head_type": None}
    ours = DinoModel(DinoConfig(backbone=backbone, patch_size=patch_size, **options)).eval()
    assert (ours.config.hidden_size, ours.config.num_attention_heads) == (width, heads)
    state, weights = {}, theirs.state_dict()
    for key, tensor in weights.items():
        key = key.replace("pos_embed.", "pos_embeder.")
        if ".attn.q." in key:
            parts = [
                theirs.state_dict()[key.replace("pos_embeder.", "pos_embed.").replace(".q.", f".{x}.")] for x in "qkv"
            ]
            state[key.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif ".attn.k." not in key and ".attn.v." not in key:
            state[key] = tensor
    ours.backbone.load_state_dict(state)
    images = torch.randn(2, 3, 53, 70)
    assert_close(ours(images).last_hidden_state, theirs.forward_features(images))


@torch.no_grad()
def test_initialisation():
    backbone = DinoModel(DinoConfig(backbone="xcit_tiny_12", num_hidden_layers=1, head_type=None)).backbone
    block = backbone.blocks[0]
    assert (block.attn.temperature == 1).all()
    assert (block.gamma1 == 1).all()
    assert abs(block.attn.qkv.weight.std() - 0.02) < 1e-3
    assert 0.01 < backbone.cls_token.std() < 0.03
    assert DinoConfig(backbone="xcit_tiny_24").layerscale_value == 1e-5
    assert DinoConfig(backbone="xcit_tiny_12").layerscale_value == 1


def test_drop_path_is_the_same_in_all_blocks():
    model = DinoModel(config_of(METADATA["patch16"], drop_path_rate=0.2))
    assert {block.drop_path.rate for block in model.backbone.blocks} == {0.2}


def test_gradient_checkpointing_counts_a_batch_once():
    plain = model_of("patch16").train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    images = TENSORS[f"input.{'x'.join(map(str, METADATA['patch16']['train_size']))}"]
    for model in (plain, checkpointed):
        model(images).pooler_output.square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(checkpointed.get_parameter(name).grad, parameter.grad), name
    for name, buffer in plain.named_buffers():
        assert torch.equal(checkpointed.get_buffer(name), buffer), name
