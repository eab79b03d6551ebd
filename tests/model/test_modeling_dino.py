import copy
import json
import logging
import re

import pytest
import torch
from golden_data import assert_close
from processes import run_python
from safetensors.torch import load_file, save_file
from tiny_models import ALL_BACKBONES, TINY_HEAD, shallow_config, tiny_config
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    GPT2Config,
    GPT2Model,
    pipeline,
)

from modeling_dino import DinoBackbone, DinoConfig, DinoForImageClassification, DinoModel
from modeling_dino.configuration_dino import BACKBONES, BOTTLENECK_RESNETS, CONVNEXT_SIZES, VIT_SIZES, XCIT_SIZES
from modeling_dino.extraction.features import image_features


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32)


def narrow_config(backbone: str, **overrides) -> DinoConfig:
    """Any backbone in its full depth, but narrow."""
    transformers = {**VIT_SIZES, **XCIT_SIZES}
    if backbone in transformers:
        size = {"hidden_size": 8 * transformers[backbone][2], "patch_size": 8}
    elif backbone in CONVNEXT_SIZES:
        size = {"hidden_sizes": [4, 8, 12, 16]}
    else:
        size = {"hidden_size": 64 if backbone in BOTTLENECK_RESNETS else 32}
    return DinoConfig(backbone=backbone, image_size=32, **{**size, **TINY_HEAD, **overrides})


def randomize(model: torch.nn.Module):
    """Every parameter and buffer away from its initial value, as after training."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
            else:
                tensor += 3


def assert_bitwise_equal(model: torch.nn.Module, expected: torch.nn.Module, images: torch.Tensor):
    state, expected_state = model.state_dict(), expected.state_dict()
    assert list(state) == list(expected_state)
    for name, tensor in expected_state.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    with torch.no_grad():
        output, expected_output = model.eval()(images), expected.eval()(images)
    assert list(output) == list(expected_output)
    for name in output:
        assert torch.equal(output[name], expected_output[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_and_loaded_bit_for_bit(tmp_path, images, backbone):
    assert_saved_and_loaded(tmp_path, DinoModel(narrow_config(backbone)), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_type", ["dino", "simple", None])
def test_heads_and_dtypes_saved_and_loaded_bit_for_bit(tmp_path, images, family, head_type, dtype):
    DinoModel(tiny_config(family, head_type=head_type)).save_pretrained(tmp_path / "first")
    assert_saved_and_loaded(tmp_path / "second", DinoModel.from_pretrained(tmp_path / "first", dtype=dtype), images)


def assert_saved_and_loaded(tmp_path, model: DinoModel, images: torch.Tensor):
    randomize(model)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    loaded = DinoModel.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert_bitwise_equal(loaded, model, images)


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("head_use_bn", [True, False])
def test_sharded_bit_for_bit(tmp_path, images, family, head_use_bn, norm_last_layer):
    model = DinoModel(tiny_config(family, head_use_bn=head_use_bn, norm_last_layer=norm_last_layer))
    randomize(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_bitwise_equal(DinoModel.from_pretrained(tmp_path), model, images)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_a_frozen_gain_stays_frozen(tmp_path, norm_last_layer):
    model = DinoModel(tiny_config(norm_last_layer=norm_last_layer))
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        on_meta = DinoModel(model.config)
    loaded = DinoModel.from_pretrained(tmp_path)
    for other in (loaded, copy.deepcopy(loaded), loaded.to(torch.bfloat16), on_meta, on_meta.to_empty(device="cpu")):
        trainable = {name for name, parameter in other.named_parameters() if parameter.requires_grad}
        assert ("head.last_layer.weight_g" in trainable) != norm_last_layer
        assert "head.last_layer.weight_g" in other.state_dict()


@pytest.fixture
def poisoned_memory(monkeypatch):
    """What PyTorch gives without initialising it is not a number."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poisoned(*args, make=make, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_a_head_asked_for_is_initialised(tmp_path, family, norm_last_layer):
    DinoModel(tiny_config(family, head_type=None)).save_pretrained(tmp_path)
    options = {**TINY_HEAD, "head_type": "dino", "norm_last_layer": norm_last_layer}
    linear, prototypes = [], []
    for seed in range(25):
        torch.manual_seed(seed)
        model, report = DinoModel.from_pretrained(tmp_path, output_loading_info=True, **options)
        assert {key for key in report["missing_keys"] if key.startswith("head.")} == {
            f"head.{name}" for name in model.head.state_dict()
        }
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
        assert (model.head.last_layer.weight_g == 1).all()
        assert all((layer.bias == 0).all() for layer in model.head.mlp if isinstance(layer, torch.nn.Linear))
        linear.append(model.head.mlp[0].weight.detach().flatten())
        prototypes.append(model.head.last_layer.weight_v.detach().flatten())
    linear, prototypes = torch.cat(linear), torch.cat(prototypes)
    assert abs(linear.std() - 0.02) < 5e-4
    bound = TINY_HEAD["head_bottleneck_dim"] ** -0.5  # uniform, the default of nn.Linear
    assert prototypes.abs().max() <= bound
    assert abs(prototypes.std() / (bound / 3**0.5) - 1) < 0.03


def test_nobody_gets_a_head_without_asking(tmp_path, images):
    """Also where config.json promises one that the weights do not have."""
    model = DinoModel(tiny_config())
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    backbone = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    save_file(backbone, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = DinoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.head is None
    assert loaded.config.head_type is None
    assert not report["missing_keys"]
    assert loaded(images).projection is None
    assert DinoModel.from_pretrained(tmp_path, head_type="dino").head is not None


@pytest.mark.slow
def test_the_load_report_names_a_missing_head(tmp_path):
    DinoModel(tiny_config(head_type=None)).save_pretrained(tmp_path)
    code = f"""
from modeling_dino import DinoModel
DinoModel.from_pretrained({str(tmp_path)!r}, head_type="dino", projection_dim=24)
"""
    assert "head.last_layer.weight_v" in run_python(code, tmp_path).stderr


def test_models_of_all_classes_load_each_others_weights(tmp_path, images, family):
    model = DinoModel(tiny_config(family, num_labels=5)).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "model")
    features = model(images).pooler_output
    classifier, report = DinoForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    assert torch.equal(classifier.backbone.pool(classifier.backbone(images)), features)
    backbone = DinoBackbone.from_pretrained(tmp_path / "model")
    classifier.save_pretrained(tmp_path / "classifier")
    backbone.save_pretrained(tmp_path / "backbone")
    for folder in ("classifier", "backbone"):
        again = DinoModel.from_pretrained(tmp_path / folder)
        assert again.head is None
        assert torch.equal(again(images).pooler_output, features)
    assert model.config.head_type == "dino"  # the configuration handed in is left alone


@pytest.fixture
def _on_the_hub(monkeypatch):
    """`AutoBackbone.from_pretrained` takes what is not on the hub for a timm name, so every folder is said to be."""
    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", lambda self, repo_id: True)


@pytest.mark.usefixtures("_on_the_hub")
def test_auto_classes(tmp_path, images, family):
    config = tiny_config(family, num_labels=3)
    assert type(AutoModel.from_config(config)) is DinoModel
    model = DinoModel(config).eval()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DinoConfig
    auto = AutoModel.from_pretrained(tmp_path)
    assert type(auto) is DinoModel
    assert torch.equal(auto(images).projection, model(images).projection)
    assert type(AutoModelForImageClassification.from_pretrained(str(tmp_path))) is DinoForImageClassification
    assert type(AutoBackbone.from_pretrained(str(tmp_path))) is DinoBackbone


@pytest.mark.usefixtures("_on_the_hub")
def test_backbone_feature_maps(tmp_path, images, family):
    model = DinoModel(tiny_config(family)).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    names = ["stem", "stage1", "stage3"]
    backbone = AutoBackbone.from_pretrained(str(tmp_path), out_features=names)
    assert backbone.out_features == names
    images = torch.randn(2, 3, 48, 64)
    maps = backbone(images).feature_maps
    assert [feature_map.shape[1] for feature_map in maps] == backbone.channels
    states = model(images, output_hidden_states=True).hidden_states
    for feature_map, state in zip(maps, (states[0], states[1], states[3])):
        if family in ("resnet", "convnext"):  # whose stages but the last have no norm
            assert torch.equal(feature_map, state)
        else:
            tokens = model.backbone.attend_from_cls(state) if family == "xcit" else state
            patches = model.backbone.norm(tokens)[:, model.backbone.num_prefix_tokens :]
            assert feature_map.shape[-2:] == (6, 8)
            assert torch.equal(feature_map.flatten(2).transpose(1, 2), patches)
    assert backbone(images, output_hidden_states=True).hidden_states[1].equal(states[1])


def test_hidden_states_are_not_normed_and_the_last_is_before_the_norm(images):
    model = DinoModel(tiny_config()).eval()
    output = model(images, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert torch.equal(model.backbone.norm(output.hidden_states[-1]), output.last_hidden_state)
    assert torch.equal(model.backbone.embed(images), output.hidden_states[0])
    raw = model.get_intermediate_layers(images, n=3, norm=False)
    assert all(torch.equal(tokens, state) for tokens, state in zip(raw, output.hidden_states[1:]))


def test_intermediate_layers_of_a_resnet(images):
    model = DinoModel(tiny_config("resnet")).eval()
    states = model(images, output_hidden_states=True).hidden_states
    third, fourth = model.get_intermediate_layers(images, n=2, reshape=True)
    assert torch.equal(third, states[3])
    assert torch.equal(fourth, states[4])
    with pytest.raises(ValueError, match="resnet50 has no CLS token"):
        model.get_intermediate_layers(images, return_class_token=True)


@pytest.mark.parametrize("layers", [[3], [-4], []])
def test_layers_that_are_not_there_are_refused(images, layers):
    model = DinoModel(tiny_config())
    with pytest.raises(ValueError, match="vit_tiny has layers 0 to 2"):
        model.get_attention_maps(images, layers=layers)
    with pytest.raises(ValueError, match="vit_tiny has layers 0 to 2"):
        model.get_intermediate_layers(images, n=layers)


@pytest.mark.parametrize("n", [0, 4])
def test_a_number_of_layers_that_is_not_there_is_refused(images, n):
    with pytest.raises(ValueError, match=r"n=\d must be between 1 and 3"):
        DinoModel(tiny_config()).get_intermediate_layers(images, n=n)
    with pytest.raises(ValueError, match=r"n=\d must be between 1 and 3"):
        DinoModel(tiny_config()).get_cls_tokens(images, n=n)


def test_a_resnet_has_no_cls_tokens(images):
    with pytest.raises(ValueError, match="resnet50 has no CLS token: use its pooler_output"):
        DinoModel(tiny_config("resnet")).get_cls_tokens(images)


def assert_cls_rows(model: DinoModel, images: torch.Tensor):
    """What is computed for the CLS token alone is its row of the whole."""
    (full,) = model.get_attention_maps(images)
    before = model.backbone.num_prefix_tokens
    assert_close(full.sum(-1), torch.ones(2, 4, before + 16))
    assert_close(model.get_cls_attention(images).flatten(2), full[:, :, 0, before:])
    assert_close(model.get_cls_tokens(images)[0], model(images).pooler_output)


@pytest.fixture(params=["vit", "dinov2", "dinov3"])
def vit(request) -> DinoModel:
    """With biases that are not 0."""
    model = DinoModel(tiny_config(request.param)).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3"])
@torch.no_grad()
def test_cls_token_with_and_without_qkv_bias(images, family, qkv_bias):
    model = DinoModel(tiny_config(family, qkv_bias=qkv_bias)).eval()
    randomize(model)
    assert_cls_rows(model, images)


@torch.no_grad()
def test_cls_token_with_adapters(images, vit):
    """They wrap the linear whose rows are taken apart."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    plain = type(vit.backbone.blocks[-1].attn.qkv)
    model = get_peft_model(vit, lora).eval().base_model.model
    assert type(model.backbone.blocks[-1].attn.qkv) is not plain
    assert_cls_rows(model, images)


@torch.no_grad()
def test_cls_token_of_an_offloaded_model(tmp_path, images, vit):
    vit.save_pretrained(tmp_path)
    device_map = {"backbone": "disk", "head": "cpu"}
    model = DinoModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload").eval()
    assert_cls_rows(model, images)


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3", "convnext", "xcit"])
def test_cls_tokens_have_the_gradient_of_the_whole(images, family):
    model, images = DinoModel(tiny_config(family)).eval().double(), images.double()
    probe = torch.randn(2, model.config.hidden_size, dtype=torch.double)
    (model.get_cls_tokens(images)[0] * probe).sum().backward()
    parameters = [parameter for parameter in model.backbone.parameters() if parameter.grad is not None]
    gradients = [parameter.grad.clone() for parameter in parameters]
    model.zero_grad()
    (model(images).pooler_output * probe).sum().backward()
    for gradient, parameter in zip(gradients, parameters, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_memory_of_cls_attention(tmp_path):
    """On 480 px at patch 8, beyond what a forward pass needs: less than a tenth of that of the full map."""
    code = """
import re, torch
from pathlib import Path
from modeling_dino import DinoConfig, DinoModel
def peak():  # of this process; getrusage begins with that of the process it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
model = DinoModel(DinoConfig(backbone="vit_small", patch_size=8, num_hidden_layers=2, head_type=None)).eval()
images = torch.randn(1, 3, 480, 480)
peaks = []
with torch.inference_mode():
    for run in (model, model, model.get_cls_attention, model.get_attention_maps):
        run(images)
        peaks.append(peak())
print(peaks[2] - peaks[1], peaks[3] - peaks[1])
"""
    cls_only, full = map(int, run_python(code, tmp_path).stdout.split())
    assert full > 300 * 1024  # KiB: the map alone has 6 x 3601 x 3601 floats
    assert cls_only < full / 10


def test_pipeline(tmp_path, family):
    from PIL import Image

    model = DinoModel(tiny_config(family)).eval()
    model.save_pretrained(tmp_path)
    extractor = pipeline("image-feature-extraction", model=str(tmp_path))
    image = Image.effect_noise((50, 40), 64).convert("RGB")
    width = tiny_config(family).hidden_size
    tokens = torch.tensor(extractor(image))
    assert tokens.shape == model(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
    assert family != "vit" or tokens.shape == (1, 17, width)
    (pooled,) = extractor(image, pool=True)
    assert len(pooled) == width


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(family, dynamic):
    torch._dynamo.reset()  # other tests' sizes count towards the limit of recompilations
    model = DinoModel(shallow_config(family)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
    sizes = [(32, 32), (40, 64), (48, 32)]
    for height, width in sizes if dynamic else sizes[:2]:  # else each is compiled anew
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected, output = model(images), compiled(images)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert_close(output.projection, expected.projection)


@pytest.mark.slow
def test_compiles_with_inductor():
    model = DinoModel(shallow_config("vit")).eval()
    images = torch.randn(2, 3, 40, 32)
    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True)(images).projection, model(images).projection)


def test_gradient_checkpointing_gives_the_same_gradients(images, family):
    plain = DinoModel(tiny_config(family)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model(images).projection.square().sum().backward()
    for name, parameter in plain.named_parameters():
        if name != "backbone.mask_token":  # nothing is masked
            assert torch.equal(checkpointed.get_parameter(name).grad, parameter.grad), name


@pytest.mark.parametrize("head_type", ["dino", "simple"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_half_precision(images, family, dtype, tolerance, head_type):
    """As near as the dtype's own rounding allows: a few of its units, 2**-8 and 2**-11."""
    model = DinoModel(tiny_config(family, head_type=head_type)).eval()
    with torch.no_grad():
        expected = model(images)
        output = copy.deepcopy(model).to(dtype)(images)
    assert output.projection.dtype == dtype
    assert_close(output.pooler_output, expected.pooler_output, tolerance)
    assert_close(output.projection, expected.projection, tolerance)


@pytest.mark.parametrize("num_channels", [1, 4, 13])
def test_any_number_of_channels(tmp_path, family, num_channels):
    model = DinoModel(tiny_config(family, num_channels=num_channels)).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(2, num_channels, 32, 32)
    assert torch.equal(DinoModel.from_pretrained(tmp_path)(images).projection, model(images).projection)
    with pytest.raises(ValueError, match=f"3 channels, but the model has num_channels={num_channels}"):
        model(torch.randn(2, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (224, 64), (518, 518)])
def test_any_size_and_any_number_of_images(family, height, width):
    model = DinoModel(tiny_config(family)).eval()
    images = torch.randn(3, 3, height, width)
    output = model(images)
    if model.backbone.has_attention:
        patches = (height // 8) * (width // 8)
        assert output.last_hidden_state.shape[1] == model.backbone.num_prefix_tokens + patches
    assert torch.isfinite(output.projection).all()
    assert_close(model(images[:1]).pooler_output, output.pooler_output[:1])


@pytest.mark.parametrize("family", ALL_BACKBONES)
def test_lora(images, family):
    from peft import LoraConfig, get_peft_model

    scale = {} if family == "resnet" else {"layerscale_value": 0.5}
    model = DinoModel(tiny_config(family, head_type=None, **scale))
    before = model.eval()(images).pooler_output
    target = {"resnet": "conv2", "convnext": "pwconv1"}.get(family, "qkv")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[target]))
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora" in name and target in name for name in trainable)
    start = adapted.eval()(images).pooler_output
    if family == "xcit":  # whose class attention computes query, key and value one by one, but for adapters
        assert_close(start, before)
    else:
        assert torch.equal(start, before)
    adapted.train()(images).pooler_output.sum().backward()
    assert all(adapted.get_parameter(name).grad is not None for name in trainable)
    with torch.no_grad():
        for name in trainable:
            adapted.get_parameter(name).normal_(std=0.1)
    changed = adapted.eval()(images).pooler_output
    assert (changed - before).abs().max() > 1e-2 * before.abs().max()
    assert_close(adapted.merge_and_unload()(images).pooler_output, changed)


@pytest.mark.parametrize("last_blocks", [1, 2])
@pytest.mark.parametrize("features", ["cls", "cls_patch_mean"])
def test_a_classifier_of_other_features(tmp_path, features, last_blocks):
    """It classifies what `dino extract` calls by the same names; saved and loaded, too."""
    config = tiny_config(classifier_features=features, classifier_last_blocks=last_blocks, num_labels=5)
    model = DinoForImageClassification(config).eval()
    images = torch.randn(2, 3, 32, 32)
    dino = DinoModel(tiny_config(head_type=None)).eval()
    dino.backbone.load_state_dict(model.backbone.state_dict())
    expected = model.classifier(image_features(dino, images, features, last_blocks))
    torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(DinoForImageClassification.from_pretrained(tmp_path)(images).logits, model(images).logits)
    assert model(images, output_hidden_states=True).hidden_states[-1].shape == (2, 17, 32)


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss"),
    [
        (3, torch.tensor([2, 0]), torch.nn.functional.cross_entropy),
        (3, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), torch.nn.functional.binary_cross_entropy_with_logits),
        (1, torch.tensor([0.3, -2]), lambda logits, y: torch.nn.functional.mse_loss(logits.squeeze(), y)),
    ],
)
def test_classification_loss(images, family, num_labels, labels, loss):
    model = DinoForImageClassification(tiny_config(family, num_labels=num_labels)).eval()
    output = model(images, labels=labels)
    assert output.logits.shape == (2, num_labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert model.backbone.get_parameter(next(iter(dict(model.backbone.named_parameters())))).grad is not None


@pytest.mark.parametrize("device_map", ["auto", {"backbone": "cpu", "head": "disk"}])
def test_device_map(tmp_path, images, family, device_map):
    model = DinoModel(tiny_config(family)).eval()
    model.save_pretrained(tmp_path)
    loaded = DinoModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    projection, expected = loaded(images).projection, model(images).projection
    assert_close(projection, expected, 1e-6)
    assert family == "xcit" or torch.equal(projection, expected)  # whose class attention is computed another way


def test_model_info(family):
    model = DinoModel(tiny_config(family))
    model.backbone.requires_grad_(False)
    info = model.get_model_info()
    assert info == {
        "backbone": model.config.backbone,
        "feature_dim": model.config.hidden_size,
        "output_dim": 24,
        "total_params": model.num_parameters(),
        "trainable_params": info["head_params"],
        "backbone_params": sum(p.numel() for p in model.backbone.parameters()),
        "head_params": sum(p.numel() for p in model.head.parameters()),
    }
    assert DinoModel(tiny_config(family, head_type=None)).get_model_info()["output_dim"] is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "pixel_values are missing"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "pixel_values are torch.uint8: scale and normalise"),
        (torch.zeros(3, 32, 32), "pixel_values have shape (3, 32, 32), expected (batch, channels, height, width)"),
        (torch.zeros(1, 32, 32, 3), "pixel_values have 32 channels, but the model has num_channels=3"),
    ],
)
def test_images_that_do_not_fit_are_refused(family, images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DinoModel(tiny_config(family))(images)


def test_images_rescaled_twice_are_warned_of(tmp_path, caplog, family):
    from transformers import AutoImageProcessor

    caplog.set_level(logging.WARNING)
    DinoModel(tiny_config(family)).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    floats = torch.rand(3, 40, 40)
    for do_rescale, warned in ((False, False), (True, True)):
        caplog.clear()
        DinoModel.from_pretrained(tmp_path)(**processor(floats, do_rescale=do_rescale, return_tensors="pt"))
        assert ("rescaled again? Then pass do_rescale=False" in caplog.text) == warned
    DinoModel(tiny_config(family))(torch.zeros(1, 3, 32, 32))


def test_missing_and_damaged_weights_are_refused(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(OSError, match=r"model.safetensors is truncated or damaged .*: copy or download it again"):
            DinoModel.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(OSError, match=r"no model.safetensors in .*: is it a model saved with save_pretrained"):
        DinoModel.from_pretrained(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path):
    GPT2Model(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.json is of a model of type 'gpt2', not 'dino'"):
        DinoModel.from_pretrained(tmp_path)


def test_an_edited_config_file_is_checked(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "backbone": "vit_smal"}))
    with pytest.raises(ValueError, match="did you mean vit_small"):
        DinoModel.from_pretrained(tmp_path)


@pytest.mark.slow
def test_importing_and_using_the_model_needs_three_packages_alone(tmp_path):
    code = """
import torch
from modeling_dino import DinoBackbone, DinoConfig, DinoForImageClassification, DinoModel
config = DinoConfig(backbone="vit_tiny", num_hidden_layers=1, image_size=32, projection_dim=8)
model = DinoModel(config).eval()
model.save_pretrained("model")
loaded = DinoModel.from_pretrained("model")
images = torch.randn(1, 3, 32, 32)
assert torch.equal(loaded(images).projection, model(images).projection)
loaded.get_cls_attention(images)
try:
    from modeling_dino import load_features
    load_features("model")
except ImportError as error:
    print(error)
"""
    blocked = ("PIL", "accelerate", "datasets", "matplotlib", "pandas", "pyarrow", "skimage", "sklearn", "timm")
    done = run_python(code, tmp_path, blocked=(*blocked, "torchvision", "peft", "scipy", "typer"))
    assert "pyarrow is not installed: run `pip install " in done.stdout
