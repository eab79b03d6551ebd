import re

import pytest
import torch
from golden_data import assert_close, read_golden
from later_dinos import config_of
from tiny_models import tiny_config
from torch import nn

from modeling_dino import DinoForPreTraining, DinoModel
from modeling_dino.training.optimization import (
    LARS,
    clip_each_gradient,
    clip_each_module,
    layered_parameter_groups,
    parameter_groups,
    rate_multipliers,
    set_rates,
    square_root_scaling,
)


def test_weight_decay_is_for_all_but_biases_and_norms():
    model = DinoForPreTraining(tiny_config(norm_last_layer=False))
    decayed, others = parameter_groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in (decayed, others))
    assert decayed | others == {f"student.{name}" for name, _ in model.student.named_parameters()}
    assert all(name.endswith(".bias") or ".norm" in name for name in others)
    assert not any(name.endswith(".bias") for name in decayed)
    assert {
        f"student.{name}" for name in ("backbone.pos_embed", "backbone.cls_token", "head.last_layer.weight_g")
    } < decayed


def test_rates_are_set_in_all_groups_and_decay_where_there_is_one():
    optimizer = torch.optim.AdamW(parameter_groups(nn.Linear(3, 2)), lr=1.0)
    set_rates(optimizer, learning_rate=0.1, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.3), (0.1, 0.0)]


def test_each_gradient_is_clipped_by_its_own_length():
    parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    parameters[0].grad = torch.full((2, 2), 3.0)  # of length 6
    parameters[1].grad = torch.tensor([[0.3, 0.4], [0.0, 0.0]])  # of length 0.5
    norm = clip_each_gradient(parameters, max_norm=2.0)
    assert_close(parameters[0].grad, torch.full((2, 2), 1.0))
    assert torch.equal(parameters[1].grad, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    assert parameters[2].grad is None
    assert norm == pytest.approx((36 + 0.25) ** 0.5)
    assert clip_each_gradient(parameters[2:], 1.0) == 0


def test_lars_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([weight, bias], lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    gradient = torch.tensor([[0.7, -0.4]])  # with the decay: (1, 0)
    for expected_weight, expected_bias in (
        # a step of trust * |weight| = 0.05, times the learning rate
        ([[3.0 - 0.025, 4.0]], [1.0 - 0.5 * 2.0]),
        (None, [1.0 - 0.5 * 2.0 - 0.5 * (0.9 * 2.0 + 2.0)]),
    ):
        weight.grad, bias.grad = gradient.clone(), torch.tensor([2.0])
        optimizer.step()
        assert expected_weight is None or torch.allclose(weight, torch.tensor(expected_weight))
        assert torch.allclose(bias, torch.tensor(expected_bias))


def test_lars_of_nothing_is_sgd():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.5).step()
    assert torch.equal(weight, torch.full((2, 2), -0.5))


def test_lars_minimises():
    model = nn.Linear(4, 1, bias=False)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]])
    optimizer = LARS(model.parameters(), lr=2.0, trust=0.02)

    def loss():
        optimizer.zero_grad()
        value = (model(inputs) - targets).square().mean()
        value.backward()
        return value

    losses = [optimizer.step(loss).item() for _ in range(150)]
    assert losses[-1] < 0.05 * losses[0]


def golden_groups(family: str, kind: str) -> tuple[DinoModel, dict, dict]:
    """A model of an original, its multipliers by our names, and the arguments of the original's function."""
    golden = read_golden(f"{family}_losses")[0]["param_groups"]
    arguments = golden[kind]
    sizes = arguments.get("vit") or {"layer_scale_init_value": 1.0, **arguments["convnext"]}
    positions = {"pos_embed_rope_base": 100.0} if family == "dinov3" and "vit" in arguments else {}
    heads = {"head_type": "dino", "norm_last_layer": False, "head_weight_norm": family == "dinov2"}
    model = DinoModel(config_of({**sizes, **positions}, **heads))
    ours = {f"head.{name}": tuple(value) for name, value in golden["head"]["groups"].items()}
    for name, value in arguments["groups"].items():
        if arguments.get("vit", {}).get("block_chunks"):
            name = re.sub(r"^blocks\.\d+\.", "blocks.", name)
        name = name.replace("storage_tokens", "register_tokens")
        names = [name.replace("w12", part) for part in ("w1", "w2")] if "w12" in name else [name]
        ours |= {f"backbone.{one}": tuple(value) for one in names}
    return model, ours, arguments


@pytest.mark.parametrize(
    ("family", "kind"),
    [("dinov2", "mlp"), ("dinov2", "chunked_swiglu"), ("dinov3", "swiglu"), ("dinov3", "convnext")],
)
def test_the_originals_multipliers_of_rates(family, kind):
    model, expected, arguments = golden_groups(family, kind)
    # the original knows the layers of ViTs alone
    layer_decay = 1.0 if kind == "convnext" else arguments["lr_decay_rate"]
    found = rate_multipliers(model, layer_decay, arguments["patch_embed_lr_mult"])
    assert set(found) == {name for name in expected if not name.startswith("backbone.norms.")}
    for name, multipliers in found.items():
        assert multipliers == pytest.approx(expected[name]), name


def test_groups_of_equal_rates_hold_each_parameter_once():
    model = DinoModel(tiny_config())
    model.head.mlp.requires_grad_(False)
    groups = layered_parameter_groups(model, 0.5, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(name for name in names.values() if not name.startswith("head.mlp"))
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    set_rates(optimizer, learning_rate=2.0, weight_decay=0.3, last_layer_learning_rate=0.0)
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    last = model.config.num_hidden_layers + 1
    assert rates["backbone.cls_token"] == (2 * 0.5**last, 0.3)
    assert rates["backbone.patch_embed.proj.bias"] == (pytest.approx(0.2 * 0.5**last), 0.0)
    assert rates["backbone.blocks.1.attn.qkv.weight"] == (2 * 0.5 ** (last - 2), 0.3)
    assert rates["backbone.norm.weight"] == (2.0, 0.0)
    assert rates["head.last_layer.weight_v"] == (0.0, 0.3)
    set_rates(optimizer, learning_rate=2.0, weight_decay=0.3)
    assert {group["lr"] for group in optimizer.param_groups if group["is_last_layer"]} == {2.0}


def test_the_gradient_of_each_module_is_clipped_by_its_own_length():
    modules = [nn.Linear(2, 1), nn.Linear(2, 1)]
    for module, value in zip(modules, (3.0, 0.1)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
    norms = clip_each_module(modules, max_norm=1.0)
    assert [norm.item() for norm in norms] == pytest.approx([27**0.5, 0.03**0.5])
    assert_close(modules[0].weight.grad, torch.full((1, 2), 3**-0.5))
    assert (modules[1].weight.grad == 0.1).all()


def test_dinov2s_rule_of_scaling():
    example = read_golden("dinov2_losses")[0]["scaling_rules"]["example"]
    assert square_root_scaling(example["base_lr"], example["total_batch"]) == pytest.approx(example["lr"], rel=1e-12)


@pytest.mark.parametrize("family", ["vit", "resnet", "convnext", "xcit", "dinov2", "dinov3"])
def test_rates_fall_from_the_head_to_the_first_layer_in_any_backbone(family):
    model = DinoModel(tiny_config(family))
    multipliers = rate_multipliers(model, layer_decay=0.5)
    rates = {name: of.learning_rate for name, of in multipliers.items()}
    layers = model.config.num_hidden_layers
    assert {rate for name, rate in rates.items() if name.startswith("head.")} == {1.0}
    of_backbone = {rate for name, rate in rates.items() if name.startswith("backbone.")}
    assert {0.5**layer for layer in range(1, layers + 2)} <= of_backbone <= {0.5**layer for layer in range(layers + 2)}
    first = next(name for name, x in model.named_parameters() if x is model.backbone.first_convolution.weight)
    assert rates[first] == 0.5 ** (layers + 1)
    norms = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(multipliers[name].weight_decay == 0 for name in norms)
    assert bool(norms) == (family in ("resnet", "xcit"))
