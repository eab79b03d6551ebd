import pytest
import torch
from golden_data import assert_close
from tiny_models import tiny_config
from torch import nn

from modeling_dino import DinoForPreTraining
from modeling_dino.training.optimization import LARS, clip_each_gradient, parameter_groups, set_rates


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
