import copy
import re

import pytest
import torch
from golden_data import GOLDEN_DIR, assert_close, read_golden, with_prefix
from later_dinos import config_of, our_names
from tiny_models import tiny_config

from modeling_dino import DinoBackbone, DinoConfig, DinoModel
from modeling_dino.projection_head import DinoHead, SimpleHead, build_head, l2_normalize


METADATA, TENSORS = read_golden("head")
V2_METADATA, V2_TENSORS = read_golden("dinov2_head")
V2_HEADS = sorted(name for name in V2_METADATA if not name.endswith("_init"))
NAMES = {"out_dim": "projection_dim", "hidden_dim": "head_hidden_dim", "bottleneck_dim": "head_bottleneck_dim"}
NAMES |= {"in_dim": "hidden_size", "nlayers": "head_num_layers", "use_bn": "head_use_bn", "mlp_bias": "head_bias"}


FEW_AND_MANY = [6, 50]  # rows for 12 columns of prototypes, below and above `MANY_ROWS`


def fresh_head(arguments: dict, **options) -> DinoHead:
    arguments = {NAMES.get(key, key): value for key, value in arguments.items()}
    return DinoModel(DinoConfig(num_attention_heads=1, num_hidden_layers=1, **arguments, **options)).head


def golden_head(name: str) -> DinoHead:
    head = fresh_head(METADATA[name])
    head.load_state_dict(with_prefix(TENSORS, f"{name}.state_dict."))
    return head


def golden_v2_head(name: str) -> DinoHead:
    head = fresh_head(V2_METADATA[name], norm_last_layer=False)
    head.load_state_dict(with_prefix(V2_TENSORS, f"{name}.state_dict."))
    return head


@pytest.mark.parametrize("name", sorted(METADATA))
@torch.no_grad()
def test_golden(name):
    features = TENSORS[f"{name}.input"]
    assert_close(golden_head(name).eval()(features), TENSORS[f"{name}.eval_output"])
    assert_close(golden_head(name).train()(features), TENSORS[f"{name}.train_output"])


@pytest.mark.parametrize("name", V2_HEADS)
def test_golden_of_dinov2(name):
    """Outputs in both modes, and the gradients of the input, the gains and the prototypes."""
    tensors = with_prefix(V2_TENSORS, f"{name}.")
    assert_close(golden_v2_head(name).eval()(tensors["input"]), tensors["eval_output"])
    head, features = golden_v2_head(name).train(), tensors["input"].clone().requires_grad_()
    output = head(features)
    assert_close(output, tensors["train_output"])
    output.backward(tensors["output_grad"])
    assert_close(features.grad, tensors["input_grad"])
    assert_close(head.last_layer.weight_g.grad, tensors["weight_g_grad"])
    assert_close(head.last_layer.weight_v.grad, tensors["weight_v_grad"])


@pytest.mark.parametrize("name", V2_HEADS)
@torch.no_grad()
def test_a_fresh_head_starts_as_dinov2s(name):
    facts, head = V2_METADATA[f"{name}_init"], fresh_head(V2_METADATA[name], norm_last_layer=False)
    gain, prototypes = head.last_layer.weight_g, head.last_layer.weight_v
    assert gain.unique().tolist() == facts["weight_g"]
    assert gain.requires_grad == facts["weight_g_requires_grad"]
    assert abs(prototypes.std() / facts["weight_v_std"] - 1) < 0.1
    assert abs(prototypes.abs().max() / facts["weight_v_max"] - 1) < 0.03
    first = head.mlp if isinstance(head.mlp, torch.nn.Linear) else head.mlp[0]
    assert abs(first.weight.std() / facts["mlp_std"] - 1) < 0.15
    if V2_METADATA[name]["mlp_bias"]:
        assert (first.bias == 0).all()


@torch.no_grad()
def test_golden_head_of_dinov3():
    """Its prototypes are a plain linear, which starts as the other linears do."""
    metadata, tensors = read_golden("dinov3_losses")
    head = fresh_head(metadata["head"], head_weight_norm=False)
    assert abs(head.last_layer.weight.std() - 0.02) < 3e-3
    head.load_state_dict(with_prefix(tensors, "head.state_dict."))
    assert_close(l2_normalize(head.mlp(tensors["head.input"])), tensors["head.bottleneck"])
    assert_close(head(tensors["head.input"]), tensors["head.output"])


@pytest.mark.parametrize("name", ["shared", "separate"])
@torch.no_grad()
def test_patches_are_projected_by_their_head_or_by_the_other(name):
    """The heads of a run of DINOv2 on its normed tokens."""
    metadata, tensors = read_golden("dinov2_checkpoint_outputs")
    weights = torch.load(GOLDEN_DIR / f"dinov2_teacher_checkpoint_{name}.pth", weights_only=True)["teacher"]
    options, facts, expected = {}, metadata[name], with_prefix(tensors, f"{name}.")
    arguments = {NAMES[key]: value for key, value in facts["dino_head"].items()}
    if "ibot_head" in facts:
        sizes = {f"patch_{NAMES[key]}": value for key, value in facts["ibot_head"].items()}
        options = {key: value for key, value in sizes.items() if hasattr(DinoConfig, key)} | {"patch_head": True}
    config = config_of(facts["vit"], head_type="dino", norm_last_layer=False, **arguments, **options)
    model = DinoModel(config).eval()
    backbone = {re.sub(r"blocks\.\d+\.(\d+)", r"blocks.\1", key): x for key, x in weights.items()}
    model.backbone.load_state_dict(our_names(with_prefix(backbone, "backbone.")))
    model.head.load_state_dict(with_prefix(weights, "dino_head."))
    if model.patch_head is not None:
        model.patch_head.load_state_dict(with_prefix(weights, "ibot_head."))
    output = model(expected["input"], project_patches=True)
    assert_close(output.projection, expected["dino_head"])
    assert_close(output.patch_projection.flatten(0, 1), expected["ibot_head"])
    assert model(expected["input"]).patch_projection is None
    with pytest.raises(ValueError, match="no projection head: set patch_head, or head_type"):
        DinoModel(tiny_config(head_type=None))(torch.zeros(1, 3, 32, 32), project_patches=True)


def test_a_head_of_patches_is_saved_and_nobody_gets_one_without_asking(tmp_path):
    sizes = {"patch_projection_dim": 10, "patch_head_bottleneck_dim": 6}
    model, images = DinoModel(tiny_config(patch_head=True, **sizes)).eval(), torch.randn(2, 3, 32, 32)
    assert model.get_model_info()["head_params"] > sum(p.numel() for p in model.head.parameters())
    model.save_pretrained(tmp_path / "both")
    loaded = DinoModel.from_pretrained(tmp_path / "both")
    expected = model(images, project_patches=True).patch_projection
    assert expected.shape == (2, 16, 10)
    assert torch.equal(loaded(images, project_patches=True).patch_projection, expected)
    DinoBackbone.from_pretrained(tmp_path / "both").save_pretrained(tmp_path / "without")
    assert DinoModel.from_pretrained(tmp_path / "without").patch_head is None
    asked = DinoModel.from_pretrained(tmp_path / "without", patch_head=True, head_type="dino")
    assert asked.patch_head is not None


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


@pytest.mark.parametrize("rows", FEW_AND_MANY)
def test_gradients_equal_torchs_weight_norm(rows):
    """The product of gain and direction, against PyTorch's own parametrisation, in double precision."""
    ours = DinoModel(tiny_config(norm_last_layer=False)).head.last_layer
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(12, 24, bias=False))
    with torch.no_grad():
        ours.weight_g.uniform_(0.5, 2)
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    x, direction = torch.randn(rows, 12), torch.randn(rows, 24)
    (ours(x) * direction).sum().backward()
    (theirs(x) * direction).sum().backward()
    assert_close(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("rows", FEW_AND_MANY)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_in_training_outputs_and_gradients_are_those_of_autograd(frozen, dtype, rows):
    """Also where a weight or the input is not trained, and under autocast, in whose dtype both round alike."""
    layer = DinoModel(tiny_config(norm_last_layer=frozen)).head.last_layer.train()
    layer = layer if dtype == torch.bfloat16 else layer.to(dtype)
    x = torch.randn(rows, 12).to(layer.weight_v.dtype)
    direction = torch.randn(rows, 24).to(x.dtype)
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
