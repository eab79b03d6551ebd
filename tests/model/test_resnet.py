import copy

import pytest
import torch
import torchvision
from golden_data import assert_close
from tiny_models import tiny_config

from modeling_dino import DinoConfig, DinoForImageClassification, DinoModel


RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_equals_torchvision(name):
    """torchvision's models with random weights and statistics, in train and eval mode, for images of any size."""
    theirs = torchvision.models.get_model(name)
    theirs.fc = torch.nn.Identity()
    ours = DinoModel(DinoConfig(backbone=name, head_type=None))
    ours.backbone.load_state_dict(theirs.state_dict())
    for train in (True, False):  # train first: eval mode then uses the statistics it leaves
        theirs.train(train)
        ours.train(train)
        for height, width in [(64, 64), (97, 50)]:
            images = torch.randn(4, 3, height, width)
            assert_close(ours(images).pooler_output, theirs(images))
    for key, value in theirs.state_dict().items():
        if "running" in key:
            assert_close(ours.backbone.state_dict()[key], value)
        if "tracked" in key:
            assert ours.backbone.state_dict()[key] == value


@pytest.mark.slow
@torch.no_grad()
def test_gradients_equal_torchvision():
    theirs = torchvision.models.resnet18()
    theirs.fc = torch.nn.Identity()
    ours = DinoModel(DinoConfig(backbone="resnet18", head_type=None))
    ours.backbone.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 64, 64)
    with torch.enable_grad():
        theirs(images).square().mean().backward()
        ours(images).pooler_output.square().mean().backward()
    for name, parameter in theirs.named_parameters():
        # batch norm amplifies rounding on its way to the first layers
        assert_close(ours.backbone.get_parameter(name).grad, parameter.grad, 1e-4)


PARAMETERS = {"resnet18": 11176512, "resnet34": 21284672, "resnet50": 23508032, "resnet101": 42500160}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_number_of_parameters(name):
    with torch.device("meta"):
        imagenet = DinoModel(DinoConfig(backbone=name, head_type=None))
        cifar = DinoModel(DinoConfig(backbone=name, head_type=None, image_size=32))
    assert imagenet.num_parameters() == PARAMETERS[name]
    assert cifar.num_parameters() == PARAMETERS[name] - 7680


@pytest.mark.parametrize(
    ("stem", "image_size", "map_size"),
    [("auto", 32, 4), ("auto", 64, 8), ("auto", 65, 3), ("cifar", 96, 12), ("imagenet", 32, 1)],
)
def test_stem(stem, image_size, map_size):
    model = DinoModel(DinoConfig(backbone="resnet18", resnet_stem=stem, image_size=image_size, head_type=None))
    output = model(torch.randn(2, 3, image_size, image_size), output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 512, map_size, map_size)
    assert output.pooler_output.shape == (2, 512)
    assert [state.shape[1] for state in output.hidden_states] == [64, 64, 128, 256, 512]


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@torch.no_grad()
def test_initialisation(backbone):
    for zero_init_residual in (False, True):
        config = DinoConfig(backbone=backbone, zero_init_residual=zero_init_residual, head_type=None)
        resnet = DinoModel(config).backbone
        std = (2 / (resnet.conv1.weight[:, 0].numel())) ** 0.5  # Kaiming, fan out
        assert abs(resnet.conv1.weight.std() / std - 1) < 0.05
        block = resnet.layer2[1]
        last = block.bn2 if backbone == "resnet18" else block.bn3
        assert (last.weight == (0 if zero_init_residual else 1)).all()
        assert (block.bn1.weight == 1).all()
        assert (resnet.bn1.bias == 0).all()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_counts_a_batch_once(use_reentrant):
    """The blocks run twice in a step; gradients, running statistics and counters are those of one."""
    plain = DinoForImageClassification(tiny_config("resnet")).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for _ in range(2):
        images, labels = torch.randn(4, 3, 32, 32, requires_grad=True), torch.tensor([0, 1, 1, 0])
        for model in (plain, checkpointed):
            model(images, labels=labels).loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(checkpointed.get_parameter(name).grad, parameter.grad, rtol=0, atol=0)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(checkpointed.get_buffer(name), buffer, rtol=0, atol=0)


def test_attention_is_refused():
    model = DinoModel(tiny_config("resnet"))
    images = torch.randn(1, 3, 32, 32)
    for ask in (
        lambda: model(images, output_attentions=True),
        lambda: model.get_attention_maps(images),
        lambda: model.get_cls_attention(images),
    ):
        with pytest.raises(ValueError, match="resnet50 has no attention: use a ViT"):
            ask()
