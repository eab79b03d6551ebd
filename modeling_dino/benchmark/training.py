# SPDX-License-Identifier: Apache-2.0
"""Measures a training step of 2 global and 8 local crops, beside the original's step, done plainly."""

import copy

import torch
from torch import nn

from ..hub.loading import DTYPES, load_config
from ..modeling_dino import DinoModel, backbone_class
from ..training.optimization import clip_each_gradient, parameter_groups, set_rates
from ..training.self_distillation import DinoForPreTraining
from .options import BenchOptions
from .timing import TOLERANCES, Contest, measure, relative_difference


LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 5e-5, 0.04, 3.0
TEACHER_MOMENTUM, CENTER_MOMENTUM = 0.996, 0.9
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
TEMPERATURES = {"student_temperature": STUDENT_TEMPERATURE, "teacher_temperature": TEACHER_TEMPERATURE}
TRAINING_STEPS, IMAGES_COMPARED = 2, 8  # whose results are compared
UPDATE_TOLERANCES = {"cpu": 1e-3, "cuda": 2e-2}  # Adam's first updates turn where the gradient is rounding noise


class DinoStep:
    """Does what [`DinoTrainer`] does in a step."""

    optimizer_kind = {"fused": True}

    def __init__(self, model: DinoForPreTraining):
        self.model = model
        self.optimizer = torch.optim.AdamW(self.parameter_groups(), **self.optimizer_kind)

    def parameter_groups(self) -> list[dict]:
        """Returns the groups of the student's parameters."""
        return parameter_groups(self.model.student)

    def compile(self):
        """Compiles the backbones, for the two sizes of crops; for a CPU, where it takes minutes, only their graphs."""
        torch._dynamo.reset()
        backend = "eager" if self.model.device.type == "cpu" else "inductor"
        for network in (self.model.student, self.model.teacher):
            network.backbone.compile(dynamic=False, backend=backend)

    def __call__(self, crops: list[torch.Tensor]) -> torch.Tensor:
        """Does one step, and returns the loss."""
        set_rates(self.optimizer, LEARNING_RATE, WEIGHT_DECAY)
        loss, *teacher = self.forward(crops)
        self.optimizer.zero_grad()
        loss.backward()
        self.clip_gradients()
        self.optimizer.step()
        self.update(*teacher)
        return loss.detach()

    def forward(self, crops: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the loss, and the teacher's projection of the global crops, (2 * B, K)."""
        output = self.model(crops, **TEMPERATURES)
        return output.loss, output.teacher_projection

    def clip_gradients(self):
        """Clips the gradient of each parameter by its norm."""
        clip_each_gradient(self.model.student.parameters(), MAX_GRAD_NORM)

    def update(self, teacher: torch.Tensor):
        """Updates the teacher and the center."""
        self.model.update_teacher(TEACHER_MOMENTUM)
        self.model.update_center(teacher, CENTER_MOMENTUM)


class PlainStep(DinoStep):
    """
    Does the training step as the original (https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py) does.

    It takes two passes of the backbone for all tokens, attention by definition, a loss pair by pair, weight norm on
    the weight, and loops over parameters for clipping, AdamW and the teacher.
    """

    optimizer_kind = {"foreach": False}

    def __init__(self, model: DinoForPreTraining):
        super().__init__(model)
        for network in (model.student, model.teacher):
            network.set_attn_implementation("eager")

    def project(self, network: DinoModel, crops: list[torch.Tensor]) -> torch.Tensor:
        """Computes the projections of crops, (crops * B, K)."""
        sizes = dict.fromkeys(crop.shape[-1] for crop in crops)
        batches = [torch.cat([crop for crop in crops if crop.shape[-1] == size]) for size in sizes]
        return project(network.head, torch.cat([network.backbone(batch)[:, 0] for batch in batches]))

    def forward(self, crops: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean loss over pairs of different crops, and the teacher's projection."""
        student = self.project(self.model.student, crops).float()
        with torch.no_grad():
            teacher = self.project(self.model.teacher, crops[:2]).float()
        students = (student / STUDENT_TEMPERATURE).chunk(len(crops))
        targets = ((teacher - self.model.center) / TEACHER_TEMPERATURE).softmax(-1).chunk(2)
        pairs = [
            torch.sum(-target * nn.functional.log_softmax(students[s], dim=-1), dim=-1).mean()
            for t, target in enumerate(targets)
            for s in range(len(crops))
            if s != t
        ]
        return sum(pairs) / len(pairs), teacher

    def clip_gradients(self):
        """Clips the gradient of each parameter by its norm."""
        for parameter in self.model.student.parameters():
            if parameter.grad is not None:
                scale = MAX_GRAD_NORM / (parameter.grad.norm(2) + 1e-6)
                if scale < 1:
                    parameter.grad.mul_(scale)

    @torch.no_grad()
    def update(self, teacher: torch.Tensor):
        """Updates the teacher and the center."""
        for ours, theirs in zip(self.model.teacher.parameters(), self.model.student.parameters()):
            ours.mul_(TEACHER_MOMENTUM).add_((1 - TEACHER_MOMENTUM) * theirs)
        mean = teacher.sum(0, keepdim=True) / len(teacher)
        self.model.center.mul_(CENTER_MOMENTUM).add_(mean * (1 - CENTER_MOMENTUM))


def project(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Computes the output of a head by its definition, (N, D) -> (N, K)."""
    bottleneck = nn.functional.normalize(head.mlp(features), dim=-1)
    weight = torch._weight_norm(head.last_layer.weight_v, head.last_layer.weight_g, 0)
    return nn.functional.linear(bottleneck, weight)


def measure_training(
    name: str,
    options: BenchOptions,
    what: str = "training",
    steps: tuple[type[DinoStep], type[DinoStep]] = (DinoStep, PlainStep),
    **settings,
) -> dict | None:
    """
    Measures training steps, after the loss and the weights of some steps have been compared.

    Args:
        what: name of the benchmark.
        steps: ours, and the original's done plainly.
        settings: of the model's configuration, where they differ from its own.
    """
    config, batch_size = load_config(name), options.training_batch_size
    if not backbone_class(config).has_attention:
        return None
    config.image_size = options.image_size or config.image_size
    for key, value in {"head_type": "dino", "head_weight_norm": True, **settings}.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = DinoForPreTraining(config).train().to(options.device)
    model.update_teacher(0.9)
    before, plain = copy.deepcopy(model), copy.deepcopy(model)
    # two crops of the model's size, and eight of three sevenths of it (96 for 224), in whole patches
    local = max(round(config.image_size * 3 / 7 / config.patch_size), 1) * config.patch_size
    shape = batch_size, config.num_channels
    crops = [torch.randn(*shape, side, side, device=options.device) for side in [config.image_size] * 2 + [local] * 8]
    half = torch.autocast(options.device, dtype=DTYPES[options.dtype], enabled=options.dtype != "float32")
    dino, rival = (step(network) for step, network in zip(steps, (model, plain)))
    # in float32 and of some images: half precision turns the direction of Adam's first updates
    few = [crop[:IMAGES_COMPARED] for crop in crops]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        losses = {
            who: torch.stack([drawn_alike(step, few, seed) for seed in range(TRAINING_STEPS)])
            for who, step in (("dino", dino), ("plain step", rival))
        }
    functions = {"dino": lambda: half(dino)(crops), "plain step": lambda: half(rival)(crops)}
    if options.compile:
        compiled = steps[0](copy.deepcopy(model))
        compiled.compile()
        functions["dino compiled"] = lambda: half(compiled)(crops)
    facts = {
        "loss_difference": relative_difference(losses["plain step"], losses["dino"]),
        "update_difference": update_difference(before, plain, model),
        "projection_dim": config.projection_dim,
        "batch_size": batch_size,
        "image_size": config.image_size,
    }
    tolerance = UPDATE_TOLERANCES[torch.device(options.device).type]
    if facts["loss_difference"] > TOLERANCES["float32"] or facts["update_difference"] > tolerance:
        return {"what": what, "model": name, **facts, "unequal": ["plain step"], "seconds": {}}
    ours = [who for who in functions if who.startswith("dino")]
    return measure(Contest(what, name, functions, ours, None, batch_size, facts=facts), options)


def drawn_alike(step: DinoStep, crops: list[torch.Tensor], seed: int) -> torch.Tensor:
    """Does a step whose random numbers are those of the seed, and returns its loss."""
    torch.manual_seed(seed)
    return step(crops)


def update_difference(before: DinoForPreTraining, a: DinoForPreTraining, b: DinoForPreTraining) -> float:
    """
    Returns the difference between two updates of student and teacher, relative to the length of one.

    The keys' biases are left out: their gradient is rounding noise, which Adam makes large.
    """
    weights = [dict(model.named_parameters()) for model in (before, a, b)]
    names = [name for name in weights[0] if not name.endswith("qkv.bias")]
    vectors = [torch.cat([named[name].detach().flatten() for name in names]) for named in weights]
    return ((vectors[1] - vectors[2]).norm() / (vectors[1] - vectors[0]).norm()).item()
