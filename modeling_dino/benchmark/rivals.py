# SPDX-License-Identifier: Apache-2.0
"""What `dino bench` compares with: the same backbone in other libraries, and the original's step done plainly.

Each library is used if it is installed and has the backbone; its weights are the model's own, by the converters.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from ..modeling_dino import DinoModel
from ..training.optimization import set_rates
from ..training.self_distillation import DinoForPreTraining
from .settings import LIBRARIES


Features = Callable[[torch.Tensor], torch.Tensor]  # images (B, C, H, W) -> (B, D)


def feature_rivals(model: DinoModel, libraries: list[str]) -> dict[str, nn.Module]:
    """
    The backbone as modules of other libraries, images -> features, by names; transformers' ViT on two kernels.

    Raises:
        ValueError: if a library is not known.
    """
    if unknown := [name for name in libraries if name not in LIBRARIES]:
        raise ValueError(f"unknown library {unknown[0]!r}: allowed are {', '.join(LIBRARIES)}")
    makers = {"timm": _of_timm, "transformers": _of_transformers, "torchvision": _of_torchvision}
    rivals = {}
    for name in libraries:
        if find_spec(name) is not None:
            rivals |= makers[name](model)
    return {name: rival.eval() for name, rival in rivals.items()}


class Pooled(nn.Module):
    """A model of transformers, and of its output the feature alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(images)
        if output.last_hidden_state.ndim == 4:
            return output.pooler_output.flatten(1)
        return output.last_hidden_state[:, 0]


def _of_timm(model: DinoModel) -> dict[str, nn.Module]:
    import timm

    from conversion_scripts.timm_models import TimmModels

    try:
        export = TimmModels().from_dino(model.config, model.state_dict())
    except ValueError:  # timm has no such backbone
        return {}
    theirs = timm.create_model(export.config["architecture"], **export.config["model_args"])
    theirs.load_state_dict(export.contents)
    return {"timm": theirs}


def _of_torchvision(model: DinoModel) -> dict[str, nn.Module]:
    import torchvision

    if model.config.backbone not in torchvision.models.list_models() or model.config.uses_cifar_stem:
        return {}
    theirs = torchvision.models.get_model(model.config.backbone)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(model.backbone.state_dict())
    return {"torchvision": theirs}


def _of_transformers(model: DinoModel) -> dict[str, nn.Module]:
    if not model.backbone.has_attention:
        return _resnet_of_transformers(model)
    from transformers import ViTModel

    from conversion_scripts.checkpoint import write_checkpoint
    from conversion_scripts.transformers_vit import TransformersViT

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(TransformersViT().from_dino(model.config, model.state_dict()), Path(folder) / "vit")
        return {
            f"transformers {kernel}": Pooled(
                ViTModel.from_pretrained(Path(folder) / "vit", add_pooling_layer=False, attn_implementation=kernel)
            )
            for kernel in ("sdpa", "eager")
        }


def _resnet_of_transformers(model: DinoModel) -> dict[str, nn.Module]:
    """Its parameters are ours in another order within a block: the projection of the input comes first."""
    from transformers import ResNetConfig, ResNetModel

    config = model.config
    if config.uses_cifar_stem:
        return {}
    width = config.resnet_width
    theirs = ResNetModel(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width * config.resnet_expansion * 2**i for i in range(4)],
            depths=config.depths,
            layer_type="bottleneck" if config.resnet_expansion == 4 else "basic",
        )
    )
    blocks = [model.backbone.conv1, model.backbone.bn1]
    for i in range(4):
        for block in getattr(model.backbone, f"layer{i + 1}"):
            blocks += list(block.downsample or []) + [
                module for name, module in block.named_children() if name.startswith(("conv", "bn"))
            ]
    ours = [tensor for module in blocks for tensor in module.state_dict().values()]
    names = list(theirs.state_dict())
    theirs.load_state_dict(dict(zip(names, ours, strict=True)))
    return {"transformers": Pooled(theirs)}


class PlainStep:
    """
    The training step as the paper and the original (https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py)
    have it, without this package's shortcuts: two passes of the backbone for all tokens, attention by definition, a
    loss pair by pair, weight norm on the weight, and loops over parameters for clipping, AdamW and the teacher.
    """

    def __init__(self, model: DinoForPreTraining, optimizer: torch.optim.Optimizer, rates: dict[str, float]):
        self.model, self.optimizer, self.rates = model, optimizer, rates

    def project(self, network: DinoModel, crops: list[torch.Tensor]) -> torch.Tensor:
        """(crops * B, K)."""
        sizes = dict.fromkeys(crop.shape[-1] for crop in crops)
        batches = [torch.cat([crop for crop in crops if crop.shape[-1] == size]) for size in sizes]
        features = torch.cat([network.backbone(batch)[:, 0] for batch in batches])
        head = network.head
        bottleneck = nn.functional.normalize(head.mlp(features), dim=-1)
        weight = torch._weight_norm(head.last_layer.weight_v, head.last_layer.weight_g, 0)
        return nn.functional.linear(bottleneck, weight)

    def loss(self, student: torch.Tensor, teacher: torch.Tensor, num_crops: int) -> torch.Tensor:
        """The mean over pairs of different crops."""
        students = (student / self.rates["student_temperature"]).chunk(num_crops)
        targets = ((teacher - self.model.center) / self.rates["teacher_temperature"]).softmax(-1).chunk(2)
        pairs = [
            torch.sum(-target * nn.functional.log_softmax(students[s], dim=-1), dim=-1).mean()
            for t, target in enumerate(targets)
            for s in range(num_crops)
            if s != t
        ]
        return sum(pairs) / len(pairs)

    def __call__(self, crops: list[torch.Tensor]) -> torch.Tensor:
        """One step; returns the loss."""
        model, rates = self.model, self.rates
        set_rates(self.optimizer, rates["learning_rate"], rates["weight_decay"])
        student = self.project(model.student, crops)
        with torch.no_grad():
            teacher = self.project(model.teacher, crops[:2])
        loss = self.loss(student.float(), teacher.float(), len(crops))
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in model.student.parameters():
            if parameter.grad is not None:
                scale = rates["max_grad_norm"] / (parameter.grad.norm(2) + 1e-6)
                if scale < 1:
                    parameter.grad.mul_(scale)
        self.optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(model.teacher.parameters(), model.student.parameters()):
                ours.mul_(rates["teacher_momentum"]).add_((1 - rates["teacher_momentum"]) * theirs)
            mean = teacher.float().sum(0, keepdim=True) / len(teacher)
            model.center.mul_(rates["center_momentum"]).add_(mean * (1 - rates["center_momentum"]))
        return loss.detach()


__all__ = ["PlainStep", "feature_rivals"]
