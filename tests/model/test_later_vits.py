"""The vision transformers of DINOv2 and DINOv3, against numbers of the originals."""

import re

import pytest
import torch
from golden_data import assert_close, read_golden, with_prefix
from later_dinos import config_of, golden_model, our_names

from modeling_dino import DinoConfig, DinoModel


GOLDEN = {name: read_golden(name) for name in ("dinov2_vit", "dinov3_vit")}
MODELS = [
    (file, name)
    for file, (metadata, _) in GOLDEN.items()
    for name, value in metadata.items()
    if isinstance(value, dict) and "embed_dim" in value
]
V3_MODELS = [name for file, name in MODELS if file == "dinov3_vit"]
REGISTERS = {"dinov2_vit": "x_norm_regtokens", "dinov3_vit": "x_storage_tokens"}


def weights_of(file: str, name: str) -> dict[str, torch.Tensor]:
    return with_prefix(GOLDEN[file][1], f"{name}.state_dict.")


def tolerance_of(name: str) -> float:
    return 1e-3 if name == "rope_bf16" else 1e-5


def sizes_of(tensors: dict[str, torch.Tensor], prefix: str) -> list[str]:
    """The sizes for which there is a quantity."""
    return [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]


@pytest.fixture(scope="module", params=MODELS, ids=lambda case: "-".join(case))
def case(request) -> tuple[str, DinoModel, dict[str, torch.Tensor]]:
    """Name, model and tensors of a golden ViT, without its name and with what it shares."""
    file, name = request.param
    metadata, tensors = GOLDEN[file]
    model = golden_model(metadata[name], weights_of(file, name))
    shared = {key: value for key, value in tensors.items() if key.startswith(("input.", "masks."))}
    return name, model, {**shared, **with_prefix(tensors, f"{name}.")}


def assert_features(output, tensors: dict[str, torch.Tensor], prefix: str, size: str, tolerance: float):
    """All that the original's dictionary of features has."""
    assert_close(output.pooler_output, tensors[f"{prefix}x_norm_clstoken.{size}"], tolerance)
    assert_close(output.last_hidden_state[:, 0], tensors[f"{prefix}x_norm_clstoken.{size}"], tolerance)
    assert_close(output.patch_tokens, tensors[f"{prefix}x_norm_patchtokens.{size}"], tolerance)
    expected = [tensors.get(f"{prefix}{name}.{size}") for name in REGISTERS.values()]
    (expected,) = [x for x in expected if x is not None] or [None]
    assert (output.register_tokens is None) == (expected is None or not expected.numel())
    if output.register_tokens is not None:
        assert_close(output.register_tokens, expected, tolerance)
    if f"{prefix}x_prenorm.{size}" in tensors:
        assert_close(output.hidden_states[-1], tensors[f"{prefix}x_prenorm.{size}"], tolerance)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_features(case, attention):
    name, model, tensors = case
    model.set_attn_implementation(attention)
    sizes = sizes_of(tensors, "x_norm_clstoken.")
    assert len(sizes) > 3
    for size in sizes:
        output = model(tensors[f"input.{size}"], output_hidden_states=True)
        assert_features(output, tensors, "", size, tolerance_of(name))
        assert_close(model.get_features(tensors[f"input.{size}"]), output.pooler_output, tolerance_of(name))


@torch.no_grad()
def test_masked_patches(case):
    name, model, tensors = case
    for size in sizes_of(tensors, "masked.x_norm_clstoken."):
        images, masks = tensors[f"input.{size}"], tensors[f"masks.{size}"]
        output = model(images, bool_masked_pos=masks, output_hidden_states=True)
        assert_features(output, tensors, "masked.", size, tolerance_of(name))
        feature = model.get_features(images, bool_masked_pos=masks)
        assert_close(feature, output.pooler_output, tolerance_of(name))


@pytest.mark.parametrize("normed", [True, False])
@torch.no_grad()
def test_intermediate_layers(case, normed):
    name, model, tensors = case
    of_norm = with_prefix(tensors, f"intermediate.{'normed' if normed else 'raw'}.")
    sizes = sizes_of(of_norm, "0.cls.")
    for size in sizes:
        n = sum(key.endswith(f"cls.{size}") for key in of_norm)
        images, tolerance = tensors[f"input.{size}"], tolerance_of(name)
        layers = model.get_intermediate_layers(images, n, reshape=True, return_class_token=True, norm=normed)
        whole = model.get_intermediate_layers(images, n, norm=normed)
        for i, ((patches, cls), tokens) in enumerate(zip(layers, whole, strict=True)):
            assert_close(patches, of_norm[f"{i}.patches.{size}"], tolerance)
            assert_close(cls, of_norm[f"{i}.cls.{size}"], tolerance)
            storage = of_norm.get(f"{i}.storage.{size}")
            if storage is not None and storage.numel():
                assert_close(tokens[:, 1 : model.backbone.num_prefix_tokens], storage, tolerance)
        if normed:
            for i, cls in enumerate(model.get_cls_tokens(images, n)):
                assert_close(cls, of_norm[f"{i}.cls.{size}"], tolerance)


@torch.no_grad()
def test_attention(case):
    name, model, tensors = case
    for size in sizes_of(tensors, "last_attention."):
        images, expected, tolerance = tensors[f"input.{size}"], tensors[f"last_attention.{size}"], tolerance_of(name)
        assert_close(model.get_attention_maps(images)[0], expected, tolerance)
        assert_close(model(images, output_attentions=True).attentions[-1], expected, tolerance)
        to_patches = expected[:, :, 0, model.backbone.num_prefix_tokens :]
        cls_attention = model.get_cls_attention(images)
        assert cls_attention.shape[-2:] == model.backbone.grid(images)
        assert_close(cls_attention.flatten(2), to_patches, tolerance)
        patches, attention = model.backbone.patch_tokens_and_attention(images)
        assert_close(attention.flatten(2), to_patches, tolerance)
        assert_close(patches, tensors[f"x_norm_patchtokens.{size}"], tolerance)


def test_there_is_a_golden_model_with_each_option():
    """Else the tests above would pass without the option."""
    configs = [config_of(GOLDEN[file][0][name]) for file, name in MODELS]
    for option in ("num_register_tokens", "use_swiglu_ffn", "use_rms_norm", "rope_theta", "rope_min_period"):
        assert {bool(getattr(config, option)) for config in configs} == {True, False}
    assert {config.position_interpolation for config in configs} == {"dino", "size", "antialias"}
    assert {config.rope_coordinates for config in configs} == {"separate", "max", "min"}
    assert {config.layerscale_value is None for config in configs} == {True, False}


@pytest.mark.slow
@torch.no_grad()
def test_masks_in_one_graph(case):
    name, model, tensors = case
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for size in sizes_of(tensors, "masks."):
        images, masks = tensors[f"input.{size}"], tensors[f"masks.{size}"]
        expected = model(images, bool_masked_pos=masks).patch_tokens
        assert_close(compiled(images, bool_masked_pos=masks).patch_tokens, expected, tolerance_of(name))


# What DINOv3 alone has


def v3_model(name: str, **overrides) -> DinoModel:
    return golden_model(GOLDEN["dinov3_vit"][0][name], weights_of("dinov3_vit", name), **overrides)


def images_of(tensors: dict[str, torch.Tensor], size: str) -> torch.Tensor:
    return tensors[f"input.{size}"]


TABLES = [key.split(".rope_sin.") for key in GOLDEN["dinov3_vit"][1] if ".rope_sin." in key]


@pytest.mark.parametrize(("name", "size"), TABLES)
@torch.no_grad()
def test_rotary_tables(name, size):
    tensors, model = GOLDEN["dinov3_vit"][1], v3_model(name)
    sine, cosine = model.backbone.angles(images_of(tensors, size))
    assert_close(sine.float(), tensors[f"{name}.rope_sin.{size}"].float(), tolerance_of(name))
    assert_close(cosine.float(), tensors[f"{name}.rope_cos.{size}"].float(), tolerance_of(name))


@pytest.mark.parametrize("name", V3_MODELS)
def test_periods_start_as_the_originals(name):
    fresh = DinoModel(config_of(GOLDEN["dinov3_vit"][0][name])).backbone.rope_embed.periods
    expected = weights_of("dinov3_vit", name)["rope_embed.periods"]
    assert_close(fresh, expected.float(), 1e-6 if expected.dtype == torch.float32 else 1e-2)


@torch.no_grad()
def test_periods_that_were_rounded_are_used_as_they_are():
    metadata, tensors = GOLDEN["dinov3_vit"]
    expected = with_prefix(tensors, "mlp_rounded_periods.")
    model = v3_model(metadata["mlp_rounded_periods"]["weights_of"])
    periods = model.backbone.rope_embed.periods
    periods.copy_(periods.to(torch.bfloat16))
    for size in sizes_of(expected, "x_norm_clstoken."):
        assert_features(model(images_of(tensors, size)), expected, "", size, 1e-5)


@pytest.mark.parametrize("drawn", ["shift", "jitter", "rescale", "all"])
def test_draws_of_training(drawn):
    metadata, tensors = GOLDEN["dinov3_vit"]
    facts = metadata["rope_train"]
    names = ("shift", "jitter", "rescale")
    values = {f"pos_embed_{name}": facts[name] if drawn in (name, "all") else None for name in names}
    rope = v3_model("mlp", **values).backbone.rope_embed
    torch.manual_seed(facts["torch_manual_seed"])
    sine, cosine = rope.train()(tuple(facts["grid"]))
    assert_close(sine, tensors[f"mlp.rope_train.{drawn}.sin"])
    assert_close(cosine, tensors[f"mlp.rope_train.{drawn}.cos"])


def test_each_block_draws_anew_in_training_alone(monkeypatch):
    tensors, model = GOLDEN["dinov3_vit"][1], v3_model("mlp", pos_embed_rescale=2.0)
    images = images_of(tensors, sizes_of(tensors, "input.")[0])
    drawn = []
    forward = type(model.backbone.rope_embed).forward
    monkeypatch.setattr(
        type(model.backbone.rope_embed), "forward", lambda self, grid: drawn.append(forward(self, grid)) or drawn[-1]
    )
    model.train()(images)
    assert len(drawn) == model.config.num_hidden_layers
    assert not torch.equal(drawn[0][0], drawn[1][0])
    drawn.clear()
    model.eval()(images)
    assert len(drawn) == 1


LOCAL_NORMS = [name for name in V3_MODELS if GOLDEN["dinov3_vit"][0][name]["untie_global_and_local_cls_norm"]]


@pytest.mark.parametrize("name", LOCAL_NORMS)
@torch.no_grad()
def test_local_crops_have_a_norm_of_their_own_in_training(name):
    """Global crops with masks, and local crops, as the note of the metadata says."""
    metadata, tensors = GOLDEN["dinov3_vit"]
    model = v3_model(name, pos_embed_rescale=None)
    whole, local = re.findall(r"\d+x\d+", metadata[name]["train_note"])
    for kind, size, options in (
        ("global", whole, {"bool_masked_pos": tensors[f"masks.{whole}"]}),
        ("local", local, {"local_crops": True}),
    ):
        expected, images = with_prefix(tensors, f"{name}.train_{kind}."), images_of(tensors, size)
        output = model.train()(images, **options)
        assert_close(output.pooler_output, expected["x_norm_clstoken"])
        assert_close(output.register_tokens, expected["x_storage_tokens"])
        assert_close(output.patch_tokens, expected["x_norm_patchtokens"])
        assert_close(model.get_features(images, **options), expected["x_norm_clstoken"])
    evaluated = model.eval()(images, local_crops=True).pooler_output
    assert torch.equal(evaluated, model(images).pooler_output)
    assert not torch.allclose(evaluated, expected["x_norm_clstoken"], atol=1e-3)


def test_a_key_bias_that_is_not_used_has_no_gradient_and_no_effect():
    tensors, model = GOLDEN["dinov3_vit"][1], v3_model("mlp")
    images = images_of(tensors, sizes_of(tensors, "input.")[0])
    before = model(images).pooler_output
    width, bias = model.config.hidden_size, model.backbone.blocks[0].attn.qkv.bias
    before.square().sum().backward()
    assert (bias.grad[width : 2 * width] == 0).all()
    assert (bias.grad[:width] != 0).any()
    with torch.no_grad():
        bias[width : 2 * width] = float("nan")
    assert torch.equal(model(images).pooler_output, before)
    assert torch.equal(model.get_cls_attention(images), model.get_cls_attention(images))
    used = v3_model("mlp", key_bias=True)(images).pooler_output
    assert not torch.allclose(used, before, atol=1e-3)


# Other libraries, with random weights of their own


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


TRANSFORMERS_NAMES = {
    "dinov2": [
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^(encoder\.)?layer\.", "blocks."),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"attention\.o_proj|attention\.output\.dense", "attn.proj"),
        (r"attention\.(attention\.)?(q_proj|query)", "attn.q"),
        (r"attention\.(attention\.)?(k_proj|key)", "attn.k"),
        (r"attention\.(attention\.)?(v_proj|value)", "attn.v"),
        (r"mlp\.gate_proj", "mlp.w1"),
        (r"mlp\.up_proj", "mlp.w2"),
        (r"mlp\.down_proj", "mlp.w3"),
        (r"^layernorm", "norm"),
    ]
}
TRANSFORMERS_NAMES["dinov3"] = [
    (r"^embeddings\.patch_embeddings", "patch_embed.proj"),
    (r"^model\.", ""),
    *TRANSFORMERS_NAMES["dinov2"],
]


def from_transformers(state_dict: dict[str, torch.Tensor], names: str, is_gated: bool) -> dict[str, torch.Tensor]:
    """Weights under our names: query, key and value are put together, a bias of the key that is missing as zeros."""
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in TRANSFORMERS_NAMES[names]:
            name = re.sub(pattern, replacement, name)
        if not is_gated:
            name = name.replace("mlp.w2", "mlp.fc1").replace("mlp.w3", "mlp.fc2")
        renamed[name] = tensor
    for key in [key for key in renamed if ".attn.q." in key]:
        zeros = torch.zeros_like(renamed[key])
        parts = [renamed.pop(key.replace(".q.", f".{part}."), zeros) for part in "qkv"]
        renamed[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    renamed["mask_token"] = renamed["mask_token"].reshape(1, -1)
    return {name: x for name, x in renamed.items() if x.numel() and "inv_freq" not in name}


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
OURS = {"backbone": "vit_tiny", "head_type": None, "use_mask_token": True, "layerscale_value": 1.0}


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
@torch.no_grad()
def test_dinov2_equals_transformers(registers, swiglu):
    """With masks, too; without registers it interpolates as the original only at the native size."""
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    options = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(**SMALL, **options, use_swiglu_ffn=swiglu)
    theirs = randomized(getattr(transformers, f"{kind}Model")(config))
    interpolation = "antialias" if registers else "size"
    ours_config = {**SMALL, **OURS, **options, "use_swiglu_ffn": swiglu, "position_interpolation": interpolation}
    ours = DinoModel(DinoConfig(**ours_config)).eval()
    ours.backbone.load_state_dict(from_transformers(theirs.state_dict(), "dinov2", swiglu))
    for size in [(56, 56), (42, 70)]:
        images, masks = torch.randn(2, 3, *size), torch.rand(2, size[0] * size[1] // 14**2) < 0.3
        for mask in (None, masks):
            expected, output = theirs(images, bool_masked_pos=mask), ours(images, bool_masked_pos=mask)
            assert_close(output.last_hidden_state, expected.last_hidden_state)
            assert_close(output.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
@torch.no_grad()
def test_dinov3_equals_transformers(registers, gated):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    options = {**SMALL, "num_register_tokens": registers, "layer_norm_eps": 1e-5, "patch_size": 16, "image_size": 64}
    gate = {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    theirs = randomized(DINOv3ViTModel(DINOv3ViTConfig(**options, intermediate_size=64, **gate)))
    options |= {"use_swiglu_ffn": gated, "mlp_ratio": 3 if gated else 2, "rope_theta": 100.0, "key_bias": False}
    ours = DinoModel(DinoConfig(**{**OURS, **options})).eval()
    weights = from_transformers(theirs.state_dict(), "dinov3", gated)
    weights["rope_embed.periods"] = ours.backbone.rope_embed.periods
    ours.backbone.load_state_dict(weights)
    for size in [(64, 64), (48, 80)]:
        images, masks = torch.randn(2, 3, *size), torch.rand(2, size[0] * size[1] // 16**2) < 0.3
        for mask in (None, masks):
            expected, output = theirs(images, bool_masked_pos=mask), ours(images, bool_masked_pos=mask)
            assert_close(output.last_hidden_state, expected.last_hidden_state)
            assert_close(output.pooler_output, expected.pooler_output)


TIMM = {
    "vit_small_patch14_reg4_dinov2": {"patch_size": 14, "image_size": 56, "position_interpolation": "antialias"},
    "vit_small_plus_patch16_dinov3_qkvb": {"backbone": "vit_small_plus", "patch_size": 16, "rope_theta": 100.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TIMM))
@torch.no_grad()
def test_equals_timm(name):
    """timm folds the position of DINOv2's CLS token into the token, if there are registers."""
    import timm

    is_v3 = name.endswith("qkvb")
    size = {"img_size": 56, "dynamic_img_size": True} if not is_v3 else {}
    theirs = randomized(timm.create_model(name, num_classes=0, depth=2, **size))
    options = {"num_register_tokens": 4, "layerscale_value": 1.0, "key_bias": not is_v3, "num_hidden_layers": 2}
    options |= {"layer_norm_eps": 1e-5 if is_v3 else 1e-6, "image_size": 224, "head_type": None}
    ours = DinoModel(DinoConfig(**{"backbone": "vit_small", **options, **TIMM[name]})).eval()
    renamed = {}
    for key, tensor in theirs.state_dict().items():
        key = key.replace("reg_token", "register_tokens").replace("gamma_", "ls").replace("mlp.fc1_g", "mlp.w1")
        key = key.replace("mlp.fc1_x", "mlp.w2").replace("mlp.fc2", "mlp.w3" if is_v3 else "mlp.fc2")
        renamed[f"{key}.gamma" if re.search(r"ls\d$", key) else key] = tensor
    for key in [key for key in renamed if key.endswith("attn.q_bias")]:
        query, value = renamed.pop(key), renamed.pop(key.replace("q_bias", "v_bias"))
        renamed[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    if is_v3:
        renamed["rope_embed.periods"] = ours.backbone.rope_embed.periods
    else:
        positions = renamed["pos_embed"]
        renamed["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    ours.backbone.load_state_dict({key: x for key, x in renamed.items() if not key.startswith(("rope.", "k_bias"))})
    for size in [(224, 224), (112, 224)] if is_v3 else [(56, 56), (42, 70)]:
        images = torch.randn(2, 3, *size)
        assert_close(ours(images).last_hidden_state, theirs.forward_features(images))


# Initialisation


@torch.no_grad()
def test_initialisation():
    """The facts of DINOv2's and DINOv3's initialisation."""
    config = config_of(GOLDEN["dinov3_vit"][0]["mlp"], hidden_size=192, token_init_std=0.02, layerscale_value=1e-5)
    backbone = DinoModel(config).backbone
    assert 0.015 < backbone.register_tokens.std() < 0.025
    assert (backbone.mask_token == 0).all()
    assert (backbone.blocks[0].ls1.gamma == 1e-5).all()
    assert abs(backbone.blocks[0].mlp.fc1.weight.std() - 0.02) < 1e-3
    config = config_of(GOLDEN["dinov2_vit"][0]["registers"], token_init_std=1e-6)
    backbone = DinoModel(config).backbone
    for tokens in (backbone.cls_token, backbone.register_tokens):
        assert 0.5e-6 < tokens.std() < 1.5e-6
    assert abs(backbone.pos_embed.std() - 0.02) < 2e-3


# Refusals


def test_masks_that_do_not_fit_are_refused():
    tensors, model = GOLDEN["dinov3_vit"][1], v3_model("mlp")
    size = sizes_of(tensors, "masks.")[0]
    images, masks = images_of(tensors, size), tensors[f"masks.{size}"]
    for wrong in (masks[:, 1:], masks.float(), masks[:1]):
        with pytest.raises(ValueError, match="one value for each patch of each image"):
            model(images, bool_masked_pos=wrong)
    with pytest.raises(ValueError, match="no mask token: leave out bool_masked_pos, or set use_mask_token=True"):
        DinoModel(config_of(GOLDEN["dinov3_vit"][0]["mlp"], use_mask_token=False))(images, bool_masked_pos=masks)


def test_no_weight_of_the_originals_is_forgotten():
    """Except for the mask of the key bias, which the configuration stands for."""
    for file, name in MODELS:
        weights = weights_of(file, name)
        masks = [key for key in weights if key.endswith("bias_mask")]
        total = sum(weights[key].numel() for key in weights if key not in masks)
        assert sum(tensor.numel() for tensor in our_names(weights).values()) == total
        width = GOLDEN[file][0][name]["embed_dim"]
        for key in masks:
            assert weights[key].unflatten(0, (3, width)).unique(dim=1).flatten().tolist() == [1, 0, 1]
