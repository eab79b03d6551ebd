import copy

import pytest
import torch
from golden_data import assert_close, read_golden, with_prefix
from tiny_models import tiny_config

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.projection_head import DinoHead, SimpleHead, build_head


METADATA, TENSORS = read_golden("head")
NAMES = {"out_dim": "projection_dim", "hidden_dim": "head_hidden_dim", "bottleneck_dim": "head_bottleneck_dim"}
NAMES |= {"in_dim": "hidden_size", "nlayers": "head_num_layers", "use_bn": "head_use_bn"}


def golden_head(name: str) -> DinoHead:
    arguments = {NAMES.get(key, key): value for key, value in METADATA[name].items()}
    head = build_head(DinoConfig(num_attention_heads=1, **arguments))
    head.load_state_dict(with_prefix(TENSORS, f"{name}.state_dict."))
    return head


@pytest.mark.parametrize("name", sorted(METADATA))
@torch.no_grad()
def test_golden(name):
    features = TENSORS[f"{name}.input"]
    assert_close(golden_head(name).eval()(features), TENSORS[f"{name}.eval_output"])
    assert_close(golden_head(name).train()(features), TENSORS[f"{name}.train_output"])


def test_outputs_are_cosines_with_a_frozen_gain():
    head = DinoModel(DinoConfig(backbone="vit_tiny")).head
    output = head(torch.randn(3, 192))
    assert output.shape == (3, 65536)
    assert output.abs().max() <= 1
    assert ((output.norm(dim=-1) - 16).abs() < 1).all()


@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_simple_head(num_layers, use_bn):
    """Against the same layers put together by hand; its output has length 1."""
    config = tiny_config(head_type="simple", head_num_layers=num_layers, head_use_bn=use_bn)
    head = build_head(config)
    assert isinstance(head, SimpleHead)
    features = torch.randn(5, config.hidden_size)
    x = features
    layers = list(head.mlp) if num_layers > 1 else [head.mlp]
    for layer in layers:
        x = layer(x)
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds.count("Linear") == num_layers
    assert kinds.count("ReLU") == num_layers - 1
    assert kinds.count("BatchNorm1d") == (num_layers - 1) * use_bn
    torch.testing.assert_close(head(features), x / x.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(head(features).norm(dim=-1), torch.ones(5))


def test_names_of_parameters_are_the_originals():
    def keys(**options) -> set[str]:
        return set(DinoModel(tiny_config(**options)).head.state_dict())

    last = {"last_layer.weight_g", "last_layer.weight_v"}
    assert keys() == {f"mlp.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")} | last
    assert keys(head_num_layers=1) == {"mlp.weight", "mlp.bias"} | last
    linears = {name for name in keys(head_use_bn=True) if name.endswith("weight") and "mlp" in name}
    assert linears == {"mlp.0.weight", "mlp.1.weight", "mlp.3.weight", "mlp.4.weight", "mlp.6.weight"}


def test_without_a_head():
    model = DinoModel(tiny_config(head_type=None))
    assert model.head is None
    assert model(torch.randn(1, 3, 32, 32)).projection is None


@pytest.mark.parametrize("frozen", [True, False])
def test_gain(frozen):
    """A frozen gain is no parameter, so nothing can train it; a free one is. Both follow copies and casts."""
    model = DinoModel(tiny_config(norm_last_layer=frozen))
    for copied in (model, copy.deepcopy(model), copy.deepcopy(model).to(torch.bfloat16)):
        gain = copied.head.last_layer.weight_g
        assert isinstance(gain, torch.nn.Parameter) != frozen
        assert gain.requires_grad != frozen
        assert gain.dtype == copied.dtype
        assert (gain == 1).all()


def test_gradients_equal_torchs_weight_norm():
    """The product of gain and direction, against PyTorch's own parametrisation, in double precision."""
    ours = DinoModel(tiny_config(norm_last_layer=False)).head.last_layer
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(12, 24, bias=False))
    with torch.no_grad():
        ours.weight_g.uniform_(0.5, 2)
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    x, direction = torch.randn(5, 12), torch.randn(5, 24)
    (ours(x) * direction).sum().backward()
    (theirs(x) * direction).sum().backward()
    assert_close(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_in_training_outputs_and_gradients_are_those_of_autograd(frozen, dtype):
    """Also where a weight or the input is not trained, and under autocast, in whose dtype both round alike."""
    layer = DinoModel(tiny_config(norm_last_layer=frozen)).head.last_layer.train()
    layer = layer if dtype == torch.bfloat16 else layer.to(dtype)
    x = torch.randn(6, 12).to(layer.weight_v.dtype)
    direction = torch.randn(6, 24).to(x.dtype)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for of_x, of_weight in ((True, True), (True, False), (False, True)):
        found = []
        layer.weight_v.requires_grad_(of_weight)
        for forward in (layer, layer.plain):
            layer.zero_grad()
            leaf = x.clone().requires_grad_(of_x)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                output = forward(leaf)
            (output * direction).sum().backward()
            gradients = (leaf.grad, layer.weight_v.grad, layer.weight_g.grad)
            found.append([output.detach(), *(g.clone() for g in gradients if g is not None)])
        ours, plain = found
        assert len(ours) == len(plain)
        for a, b in zip(ours, plain):
            assert a.dtype == b.dtype
            assert (a - b).abs().max() <= tolerance * b.abs().max()
