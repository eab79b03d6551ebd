import copy

import pytest
import torch
from golden_data import assert_close
from tiny_models import LATER_BACKBONES, tiny_config

from modeling_dino import DinoForImageClassification, DinoForPreTraining, DinoModel
from modeling_dino.extraction.features import FEATURE_KINDS, image_features
from modeling_dino.inference import PACKED_ROWS, InferenceLinear
from modeling_dino.resnet import Bottleneck, ResNet
from modeling_dino.vision_transformer import Attention, Block, Mlp, VisionTransformer


pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONES = {
    "vit": tiny_config(),
    "vit without bias": tiny_config(qkv_bias=False),
    "bottleneck": tiny_config("resnet"),
    "basic block": tiny_config("resnet", backbone="resnet18", depths=[2, 1, 2, 1]),
    "imagenet stem": tiny_config("resnet", resnet_stem="imagenet"),
    **{family: tiny_config(family) for family in LATER_BACKBONES},
}


@pytest.fixture(params=sorted(BACKBONES))
def model(request) -> DinoModel:
    """With batch norms that have seen something."""
    model = DinoModel(BACKBONES[request.param]).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 32, 32) + 0.3)
    return model.eval()


def outputs(model: DinoModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    output = model(images, output_hidden_states=True)
    named = {"feature": output.pooler_output, "last": output.last_hidden_state, "projection": output.projection}
    named |= {f"hidden state {i}": state for i, state in enumerate(output.hidden_states)}
    kinds = FEATURE_KINDS if model.backbone.has_cls_token else ("cls", "patches")
    named |= image_features(model, images, kinds)
    if model.backbone.has_cls_attention:
        named["attention"] = model.get_cls_attention(images)
    return named


@torch.no_grad()
def test_outputs_are_those_of_the_plain_model(model):
    """For several sizes, one after the other and again, and batches of any size."""
    prepared = copy.deepcopy(model).prepare_for_inference()
    least = max(model.backbone.min_image_size, 24)
    for shape in [(3, 3, 32, 32), (1, 3, 40, 56), (3, 3, 32, 32), (2, 3, 32, 32), (2, 3, least, least)]:
        images = torch.randn(shape)
        before = images.clone()
        expected, actual = outputs(model, images), outputs(prepared, images)
        assert expected.keys() == actual.keys()
        for name in expected:
            assert_close(actual[name], expected[name], 2e-6)
        assert torch.equal(images, before)


@torch.no_grad()
def test_hidden_states_are_not_written_over(model):
    images = torch.randn(2, 3, 32, 32)
    prepared = model.prepare_for_inference()
    depth = model.config.num_hidden_layers
    one_by_one = [prepared.get_intermediate_layers(images, n=[i])[0] for i in range(depth)]
    for alone, together in zip(one_by_one, prepared.get_intermediate_layers(images, n=depth)):
        assert torch.equal(alone, together)


def test_what_is_saved_is_as_before(model, tmp_path):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path / "plain")
    with torch.inference_mode():
        expected = model(images).pooler_output
        model.prepare_for_inference()(images)
    model.save_pretrained(tmp_path / "prepared")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights.pop(name))
    assert not weights
    files = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("plain", "prepared")]
    assert files[0] == files[1]
    loaded = DinoModel.from_pretrained(tmp_path / "prepared")
    assert type(loaded.backbone) is not type(model.backbone)
    assert torch.equal(loaded.eval()(images).pooler_output, expected)


@torch.no_grad()
def test_twice_and_copied(model):
    images = torch.randn(2, 3, 32, 32)
    prepared = model.prepare_for_inference()
    expected = prepared(images).pooler_output
    again = copy.deepcopy(prepared).prepare_for_inference()
    assert again is not prepared
    assert torch.equal(again(images).pooler_output, expected)
    for parameter in again.parameters():
        parameter.mul_(1.01)  # changes the copy, not what it was copied from
    assert torch.equal(prepared(images).pooler_output, expected)


@torch.no_grad()
def test_changed_weights_show(model):
    """Those that are loaded, moved to another dtype, or changed in place."""
    images = torch.randn(2, 3, 40, 40)
    other = DinoModel(model.config).eval()
    prepared = copy.deepcopy(model).prepare_for_inference()
    prepared(images)
    prepared.load_state_dict(other.state_dict())
    assert_close(prepared(images).pooler_output, other(images).pooler_output, 2e-6)
    for parameter in [*prepared.parameters(), *other.parameters()]:
        parameter.add_(0.01)
    assert_close(prepared(images).pooler_output, other(images).pooler_output, 2e-6)
    half = prepared.double()
    assert_close(half(images).pooler_output, other.double()(images).pooler_output, 1e-12)


def test_training_is_refused(model):
    prepared = model.prepare_for_inference()
    with pytest.raises(ValueError, match="prepared for inference: load it again to train it"):
        prepared.train()
    assert not prepared.backbone(torch.randn(1, 3, 32, 32)).requires_grad
    with pytest.raises(ValueError, match="student and teacher are trained"):
        DinoForPreTraining(tiny_config()).prepare_for_inference()


def test_a_classifier_is_trained_on_a_prepared_backbone(family):
    model = DinoForImageClassification(tiny_config(family)).eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    model(images, labels=labels).loss.backward()
    expected = model.classifier.weight.grad.clone()
    model.zero_grad()
    model.prepare_for_inference()(images, labels=labels).loss.backward()
    assert_close(model.classifier.weight.grad, expected)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_compiled(model):
    torch._dynamo.reset()  # other tests' models count towards the limit of recompilations
    images = torch.randn(2, 3, 40, 40)
    expected = model.get_features(images)
    prepared = copy.deepcopy(model).prepare_for_inference()
    prepared(images)
    compiled = torch.compile(prepared.get_features, backend="aot_eager", fullgraph=True)
    assert_close(compiled(images), expected, 2e-6)
    for parameter in [*prepared.parameters(), *model.parameters()]:
        parameter.add_(0.01)
    assert_close(compiled(images), model.get_features(images), 2e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linears(bias):
    """For numbers of rows that take turns; the first time, when it packs, has the bits of the later ones."""
    linear = torch.nn.Linear(48, 80, bias=bias)
    packed = copy.deepcopy(linear)
    packed.__class__ = InferenceLinear
    packed.prepare()
    large, larger = torch.randn(3, PACKED_ROWS, 48), torch.randn(PACKED_ROWS + 1, 48)
    with torch.no_grad():
        first = [packed(large), packed(larger)]
        assert len(packed._packed) == 2
        assert_close(packed(large[0]), linear(large[0]), 1e-6)  # a third number
        for x, expected in zip([large, larger], first):
            assert_close(packed(x), linear(x), 1e-6)
            assert torch.equal(packed(x), expected)
        assert len(packed._packed) == 2
        assert torch.equal(packed(large[0, 1:]), linear(large[0, 1:]))  # too few rows
    assert packed(large).requires_grad
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(packed(large), linear(large))
    with torch.no_grad():
        packed.weight.mul_(2), linear.weight.mul_(2)
        assert_close(copy.deepcopy(packed)(large), linear(large), 1e-6)
        assert_close(packed(large), linear(large), 1e-6)
        assert torch.equal(packed.double()(large.double()), linear.double()(large.double()))


@torch.no_grad()
def test_large_batches(model):
    """Whose linears are packed."""
    images = torch.randn(PACKED_ROWS // 16, 3, 32, 32)
    expected = model.get_features(images)
    prepared = model.prepare_for_inference()
    features = prepared.get_features(images)
    assert_close(features, expected, 2e-6)
    assert torch.equal(prepared.get_features(images), features)


class Scale(torch.nn.Module):
    """Multiplies by a parameter, as a layer scale."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class ScaledBlock(Block):
    def forward(self, hidden_states, cls_only=False, **kwargs):
        attended, _ = self.attn(self.norm1(hidden_states), cls_only=cls_only, **kwargs)
        hidden_states = (hidden_states[:, :1] if cls_only else hidden_states) + self.scale(attended)
        return hidden_states + self.scale(self.mlp(self.norm2(hidden_states)))


class ScaledAttention(Attention):
    def query_key_value(self, hidden_states):
        query, key, value = super().query_key_value(hidden_states)
        return query, key, 3 * value


class SwiGlu(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.fc1, self.fc2 = (torch.nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.nn.functional.silu(self.gate(x)) * self.fc1(x))


class ScaledMlp(Mlp):
    def forward(self, hidden_states):
        return 3 * super().forward(hidden_states)


class SqueezedBottleneck(Bottleneck):
    def branch(self, hidden_states):
        return self.scale(super().branch(hidden_states))


class ScaledVisionTransformer(VisionTransformer):
    def positions(self, pixel_values):
        return 3 * super().positions(pixel_values)


class ScaledResNet(ResNet):
    def stem(self, pixel_values):
        return 3 * super().stem(pixel_values)


def with_class(module: torch.nn.Module, new_class: type) -> torch.nn.Module:
    """The module as one of a subclass, with a scale."""
    module.__class__ = new_class
    module.scale = Scale()
    return module


def scaled_by_a_hook(module: torch.nn.Module):
    module.register_forward_hook(lambda module, args, output: 3 * output)


def scaled_by_its_forward(module: torch.nn.Module):
    forward = module.forward
    module.forward = lambda x: 3 * forward(x)


def grouped(conv: torch.nn.Conv2d) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, groups=2, bias=False)


# A formula that the faster classes do not know: what is done to the middle block of a ViT, or to the ViT.
UNKNOWN_TO_VIT = {
    "block with layer scale": lambda vit: with_class(vit.blocks[1], ScaledBlock),
    "layer scale for drop path": lambda vit: setattr(vit.blocks[1], "drop_path", Scale()),
    "SwiGLU": lambda vit: setattr(vit.blocks[1], "mlp", SwiGlu()),
    "other MLP": lambda vit: with_class(vit.blocks[1].mlp, ScaledMlp),
    "other activation": lambda vit: setattr(vit.blocks[1].mlp, "act", torch.nn.SiLU()),
    "approximate GELU": lambda vit: setattr(vit.blocks[1].mlp, "act", torch.nn.GELU("tanh")),
    "scale for dropout": lambda vit: setattr(vit.blocks[1].mlp, "drop", Scale()),
    "other attention": lambda vit: with_class(vit.blocks[1].attn, ScaledAttention),
    "scaled projection": lambda vit: setattr(vit.blocks[1].attn, "proj_drop", Scale()),
    "hook": lambda vit: scaled_by_a_hook(vit.blocks[1].drop_path),
    "other forward": lambda vit: scaled_by_its_forward(vit.blocks[1].mlp.act),
    "other ViT": lambda vit: with_class(vit, ScaledVisionTransformer),
}
# The same of a ResNet of bottlenecks: what is done to a block with or without a projection, or to the ResNet.
UNKNOWN_TO_RESNET = {
    "block with a scale": lambda resnet: with_class(resnet.layer2[1], SqueezedBottleneck),
    "projecting block with a scale": lambda resnet: with_class(resnet.layer2[0], SqueezedBottleneck),
    "other activation": lambda resnet: setattr(resnet.layer2[1], "relu", torch.nn.SiLU()),
    "other norm": lambda resnet: setattr(resnet.layer2[1], "bn2", torch.nn.InstanceNorm2d(4, affine=True)),
    "norm without weights": lambda resnet: setattr(
        resnet.layer2[1], "bn2", torch.nn.BatchNorm2d(4, eps=0.5, affine=False)
    ),
    "norm without statistics": lambda resnet: setattr(
        resnet.layer2[1], "bn2", torch.nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "grouped convolution": lambda resnet: setattr(resnet.layer2[1], "conv2", grouped(resnet.layer2[1].conv2)),
    "longer projection": lambda resnet: resnet.layer2[0].downsample.append(Scale()),
    "scaled projection": lambda resnet: resnet.layer2[0].downsample.__setitem__(1, Scale()),
    "identity within a stage": lambda resnet: setattr(resnet, "layer2", resnet.layer2.insert(0, torch.nn.Identity())),
    "hook": lambda resnet: scaled_by_a_hook(resnet.layer2[1].bn2),
    "other forward": lambda resnet: scaled_by_its_forward(resnet.layer2[0].downsample[0]),
    "other activation of the stem": lambda resnet: setattr(resnet, "relu", torch.nn.SiLU()),
    "other norm of the stem": lambda resnet: setattr(resnet, "bn1", Scale()),
    "other ResNet": lambda resnet: with_class(resnet, ScaledResNet),
}
UNKNOWN = [("vit", name) for name in UNKNOWN_TO_VIT] + [("bottleneck", name) for name in UNKNOWN_TO_RESNET]
NOTICED_BEFORE_ALONE = ("hook", "other forward", "other ViT", "other ResNet", "approximate GELU")


@pytest.mark.parametrize(("backbone", "change"), UNKNOWN)
@torch.no_grad()
def test_no_formula_is_lost(backbone, change):
    """Modules of other classes, with other parts, or with hooks compute what they did before."""
    changes = UNKNOWN_TO_VIT if backbone == "vit" else UNKNOWN_TO_RESNET
    plain, images = DinoModel(BACKBONES[backbone]).eval(), torch.randn(2, 3, 32, 32)
    unchanged = plain(images).pooler_output
    changes[change](plain.backbone)
    plain.eval()
    expected = outputs(plain, images)
    assert change == "identity within a stage" or not torch.equal(expected["feature"], unchanged)
    prepared = copy.deepcopy(plain).prepare_for_inference()
    for _ in range(2):
        for name, actual in outputs(prepared, images).items():
            assert_close(actual, expected[name], 2e-6)


@pytest.mark.parametrize(("backbone", "change"), [case for case in UNKNOWN if case[1] not in NOTICED_BEFORE_ALONE])
@torch.no_grad()
def test_no_formula_is_lost_that_comes_later(backbone, change):
    """Parts that are replaced in a model that was prepared before."""
    changes = UNKNOWN_TO_VIT if backbone == "vit" else UNKNOWN_TO_RESNET
    plain, images = DinoModel(BACKBONES[backbone]).eval(), torch.randn(2, 3, 32, 32)
    prepared = copy.deepcopy(plain).prepare_for_inference()
    prepared(images)
    for model in (plain, prepared):
        torch.manual_seed(0)
        changes[change](model.backbone)
        model.eval()
    actual = outputs(prepared, images)
    for name, expected in outputs(plain, images).items():
        assert_close(actual[name], expected, 2e-6)


@pytest.mark.parametrize("prepared_first", [False, True])
@pytest.mark.parametrize(("backbone", "targets"), [("vit", "qkv proj fc1 fc2"), ("bottleneck", "conv2 downsample.0")])
@torch.no_grad()
def test_adapters(backbone, targets, prepared_first):
    from peft import LoraConfig, get_peft_model

    def adapted(model: DinoModel) -> DinoModel:
        torch.manual_seed(0)
        lora = LoraConfig(target_modules=targets.split(), r=2, init_lora_weights=False)
        return get_peft_model(model, lora).base_model.model.eval()

    plain, images = DinoModel(BACKBONES[backbone]).eval(), torch.randn(2, 3, 32, 32)
    unadapted, prepared = plain(images).pooler_output, copy.deepcopy(plain)
    if prepared_first:
        prepared.prepare_for_inference()(images)
    prepared, plain = adapted(prepared), adapted(plain)
    prepared.prepare_for_inference()
    assert not torch.allclose(plain(images).pooler_output, unadapted, atol=1e-5)
    actual = outputs(prepared, images)
    for name, expected in outputs(plain, images).items():
        assert_close(actual[name], expected, 1e-5)  # the adapters make the outputs larger


def test_what_is_known_is_faster_and_what_is_not_is_plain():
    model = DinoModel(BACKBONES["vit"])
    with_class(model.backbone.blocks[1], ScaledBlock)
    backbone = model.prepare_for_inference().backbone
    first, changed, _ = backbone.blocks
    assert [type(first), type(first.mlp), type(first.mlp.fc1)] != [Block, Mlp, torch.nn.Linear]
    assert type(changed) is ScaledBlock
    assert type(changed.mlp) is type(first.mlp)
    model = DinoModel(BACKBONES["vit"])
    with_class(model.backbone, ScaledVisionTransformer)
    kinds = {type(module) for module in model.backbone.modules()}
    assert {type(module) for module in model.prepare_for_inference().backbone.modules()} == kinds


@torch.inference_mode()
def test_positions_of_many_sizes_do_not_fill_the_memory():
    """Images in sizes of their own may have thousands."""
    model = DinoModel(tiny_config()).prepare_for_inference()
    for side in range(40, 120, 8):
        model(torch.randn(1, 3, side, 40))
    assert list(model.backbone._positions) == [(side, 40) for side in range(88, 120, 8)]
