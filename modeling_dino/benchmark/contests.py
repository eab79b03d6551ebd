# SPDX-License-Identifier: Apache-2.0
"""The contests of `dino bench`: features, attention, training steps and loading, each beside its rivals.

`bench_knn.py` and `bench_extraction.py` have the others.

All rivals of a line have the same weights, input and dtype.
"""

import copy
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..configuration_dino import DinoConfig
from ..extraction.features import image_features
from ..hub.info import backbone_flops
from ..hub.loading import DTYPES, load_config
from ..modeling_dino import DinoModel, backbone_class
from ..training.optimization import clip_each_gradient, parameter_groups, set_rates
from ..training.self_distillation import DinoForPreTraining
from .extraction import bench_extraction
from .knn import bench_knn
from .rivals import PlainStep, feature_rivals
from .settings import BenchSettings
from .timing import Contest, measure, relative_difference


TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}  # relative to the largest value
RATES = {
    "learning_rate": 5e-5,
    "weight_decay": 0.04,
    "teacher_momentum": 0.996,
    "center_momentum": 0.9,
    "student_temperature": 0.1,
    "teacher_temperature": 0.04,
    "max_grad_norm": 3.0,
}
TRAINING_STEPS = 2  # whose results are compared


def random_model(name: str, settings: BenchSettings, **overrides) -> DinoModel:
    """Without a head; in the benchmark's dtype and place."""
    config = copy.deepcopy(load_config(name))
    for key, value in {"head_type": None, **overrides}.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return DinoModel(config).eval().to(settings.device, DTYPES[settings.dtype])


def random_images(model: DinoModel, settings: BenchSettings, count: int) -> torch.Tensor:
    """Of the given or the model's size."""
    side = settings.image_size or model.config.image_size
    return torch.randn(count, model.config.num_channels, side, side, device=model.device, dtype=model.dtype)


def feature_contest(what: str, name: str, settings: BenchSettings, batch_size: int) -> Contest:
    """Features of a batch: plain, prepared for inference, and compiled; ResNets of rivals also in channels_last."""
    model = random_model(name, settings)
    images = random_images(model, settings, batch_size)
    prepared = copy.deepcopy(model).prepare_for_inference()
    computers = {"dino": lambda x: image_features(model, x), "dino prepared": lambda x: image_features(prepared, x)}
    computers["dino forward"] = lambda x: model(x).pooler_output
    ours = list(computers)
    rivals = feature_rivals(model.float().cpu(), settings.against)
    model.to(settings.device, DTYPES[settings.dtype])
    rivals = {rival: module.to(settings.device, DTYPES[settings.dtype]) for rival, module in rivals.items()}
    computers |= rivals
    if not model.backbone.has_attention:  # convolutions
        images_last = images.contiguous(memory_format=torch.channels_last)
        for rival, module in rivals.items():
            last = copy.deepcopy(module).to(memory_format=torch.channels_last)
            computers[f"{rival} channels_last"] = lambda x, last=last: last(images_last)
    if settings.compile:
        for mode in compile_modes(settings.device):
            for computer in ["dino", *rivals]:
                compiled = f"{computer} {mode}"
                torch._dynamo.reset()
                computers[compiled] = compiled_by(mode, computers[computer], settings.device)
                ours += [compiled] if computer == "dino" else []
    functions = {key: inference(lambda c=computer: c(images)) for key, computer in computers.items()}
    flops = flops_of(model.config, images.shape[-1]) * batch_size
    facts = {
        "parameters": model.num_parameters(),
        "flops_per_image": flops // batch_size,
        "batch_size": batch_size,
        "image_size": images.shape[-1],
    }
    return Contest(what, name, functions, ours, TOLERANCES[settings.dtype], batch_size, flops, facts)


def flops_of(config: DinoConfig, side: int) -> int:
    """Of the backbone, for an image of this size."""
    config = copy.deepcopy(config)
    config.image_size = side
    with torch.device("meta"):
        return backbone_flops(DinoModel(config).eval(), config)


def compile_modes(device: str) -> list[str]:
    """Those of `torch.compile`."""
    return ["compiled"] if device == "cpu" else ["compiled", "max-autotune", "reduce-overhead"]


def compiled_by(mode: str, computer: Callable, device: str) -> Callable:
    """The computer through `torch.compile`; reduce-overhead has CUDA graphs, CPUs have constant weights."""
    if device == "cpu":
        return with_constant_weights(torch.compile(computer))
    return torch.compile(computer, mode=None if mode == "compiled" else mode)


def with_constant_weights(compiled: Callable) -> Callable:
    """Weights are packed and norms folded when it is first called, without gradients."""
    from torch._inductor import config  # takes a second, and is for this alone

    def run(x: torch.Tensor) -> torch.Tensor:
        # As `options` of torch.compile it comes too late: Dynamo has made the weights arguments by then.
        with config.patch(freezing=True):
            return compiled(x)

    return run


def inference(function: Callable) -> Callable:
    """The function without gradients."""

    def run():
        with torch.no_grad():
            return function()

    return run


def bench_features(settings: BenchSettings) -> list[dict]:
    """Features of batches."""
    return [measure(feature_contest("features", m, settings, settings.batch_size), settings) for m in settings.models]


def bench_latency(settings: BenchSettings) -> list[dict]:
    """Features of single images."""
    return [measure(feature_contest("latency", model, settings, 1), settings) for model in settings.models]


def bench_attention(settings: BenchSettings) -> list[dict]:
    """What the CLS token attends to in the last block, beside the whole map of each block, of which that is a row."""
    lines = []
    for name in settings.models:
        model = random_model(name, settings, position_interpolation="size")  # transformers' way
        if not model.backbone.has_attention:
            continue
        images = random_images(model, settings, 1)
        eager, prepared = copy.deepcopy(model), copy.deepcopy(model).prepare_for_inference()
        eager.set_attn_implementation("eager")  # as the original's blocks
        functions = {
            "dino": lambda m=model, x=images: m.get_cls_attention(x).flatten(2),
            "dino prepared": lambda m=prepared, x=images: m.get_cls_attention(x).flatten(2),
            "dino, map of the last block": lambda m=model, x=images: m.get_attention_maps(x)[0][:, :, 0, 1:],
        }
        ours = list(functions)
        functions["original's way"] = lambda m=eager, x=images: m.get_attention_maps(x)[0][:, :, 0, 1:]
        if "transformers" in settings.against:
            theirs = feature_rivals(model.float().cpu(), ["transformers"])["transformers eager"].model
            model.to(settings.device, DTYPES[settings.dtype])
            theirs = theirs.to(settings.device, DTYPES[settings.dtype])
            functions["transformers eager"] = lambda m=theirs, x=images: m(
                x, output_attentions=True, interpolate_pos_encoding=True
            ).attentions[-1][:, :, 0, 1:]
        functions = {key: inference(function) for key, function in functions.items()}
        facts = {"image_size": images.shape[-1], "batch_size": 1}
        attention, *others = (function() for function in functions.values())
        facts["largest_difference"] = max((other - attention).abs().max().item() for other in others)
        lines.append(measure(Contest("attention", name, functions, ours, 1e-3, 1, 0, facts), settings))
    return lines


def bench_training(settings: BenchSettings) -> list[dict]:
    """Training steps of 2 global and 8 local crops, beside the original's step done plainly."""
    configs = {name: load_config(name) for name in settings.models}
    return [
        training_line(name, config, settings)
        for name, config in configs.items()
        if backbone_class(config).has_attention
    ]


def training_line(name: str, config: DinoConfig, settings: BenchSettings) -> dict:
    """Loss and weights after some steps are compared first."""
    config = copy.deepcopy(config)
    config.head_type = "dino"
    torch.manual_seed(0)
    model = DinoForPreTraining(config).train().to(settings.device)
    model.update_teacher(0.9)
    before, plain = copy.deepcopy(model), copy.deepcopy(model)
    for network in (plain.student, plain.teacher):
        network.set_attn_implementation("eager")
    crops = random_crops(config, settings)
    half = torch.autocast(settings.device, dtype=DTYPES[settings.dtype], enabled=settings.dtype != "float32")
    dino, rival = (
        DinoStep(model, adamw(model, fused=True), RATES),
        PlainStep(plain, adamw(plain, foreach=False), RATES),
    )
    functions = {"dino": lambda: half(dino)(crops), "plain step": lambda: half(rival)(crops)}
    losses = {who: torch.stack([step() for _ in range(TRAINING_STEPS)]) for who, step in functions.items()}
    facts = {
        "loss_difference": relative_difference(losses["plain step"], losses["dino"]),
        "update_difference": update_difference(before, plain, model),
        "projection_dim": config.projection_dim,
        "batch_size": settings.training_batch_size,
    }
    if max(facts["loss_difference"], facts["update_difference"] / 10) > TOLERANCES[settings.dtype]:
        return {"what": "training", "model": name, **facts, "unequal": ["plain step"], "seconds": {}}
    contest = Contest("training", name, functions, ["dino"], None, settings.training_batch_size, 0, facts)
    return measure(contest, settings)


def random_crops(config, settings: BenchSettings) -> list[torch.Tensor]:
    """Two of the model's size, and eight of three sevenths of it (96 for 224)."""
    sides = [config.image_size] * 2 + [max(config.image_size * 3 // 7, config.patch_size)] * 8
    shape = settings.training_batch_size, config.num_channels
    return [torch.randn(*shape, side, side, device=settings.device) for side in sides]


def adamw(model: DinoForPreTraining, **kind: bool) -> torch.optim.Optimizer:
    """For the student."""
    return torch.optim.AdamW(parameter_groups(model.student), **kind)


def update_difference(before: DinoForPreTraining, a: DinoForPreTraining, b: DinoForPreTraining) -> float:
    """
    By how much two updates of student and teacher differ, relative to the update, in length over all weights.

    The keys' biases are left out: their gradient is rounding noise, which Adam makes large.
    """
    weights = [dict(model.named_parameters()) for model in (before, a, b)]
    names = [name for name in weights[0] if not name.endswith("qkv.bias")]
    vectors = [torch.cat([named[name].detach().flatten() for name in names]) for named in weights]
    return ((vectors[1] - vectors[2]).norm() / (vectors[1] - vectors[0]).norm()).item()


class DinoStep:
    """What [`DinoTrainer`] does in a step."""

    def __init__(self, model: DinoForPreTraining, optimizer: torch.optim.Optimizer, rates: dict[str, float]):
        self.model, self.optimizer, self.rates = model, optimizer, rates

    def __call__(self, crops: list[torch.Tensor]) -> torch.Tensor:
        """One step; returns the loss."""
        rates = self.rates
        set_rates(self.optimizer, rates["learning_rate"], rates["weight_decay"])
        output = self.model(
            crops,
            student_temperature=rates["student_temperature"],
            teacher_temperature=rates["teacher_temperature"],
        )
        self.optimizer.zero_grad()
        output.loss.backward()
        clip_each_gradient(self.model.student.parameters(), rates["max_grad_norm"])
        self.optimizer.step()
        self.model.update_teacher(rates["teacher_momentum"])
        self.model.update_center(output.teacher_projection, rates["center_momentum"])
        return output.loss.detach()


IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def bench_loading(settings: BenchSettings) -> list[dict]:
    """Importing the package, and loading a saved model, beside transformers' own and reading the file."""
    imports = {
        "dino": lambda: import_seconds("import modeling_dino"),
        "transformers.PreTrainedModel": lambda: import_seconds("from transformers import PreTrainedModel"),
    }
    inner = {name: [] for name in imports}
    for _ in range(settings.rounds + 1):
        for name in random.sample(list(imports), len(imports)):
            inner[name].append(imports[name]())
    seconds = {name: statistics.median(values[1:]) for name, values in inner.items()}
    ratio = {"dino": seconds["transformers.PreTrainedModel"] / seconds["dino"]}
    lines = [{"what": "import", "model": "", "seconds": seconds, "ratio": ratio, "unequal": []}]
    return lines + [loading_line(name, settings) for name in settings.models]


def import_seconds(statement: str) -> float:
    """In a process of its own."""
    done = subprocess.run([sys.executable, "-c", IMPORT.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def loading_line(name: str, settings: BenchSettings) -> dict:
    """`from_pretrained` from a folder."""
    from safetensors.torch import load_file

    model = random_model(name, settings).cpu().float()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        model.save_pretrained(ours)
        rivals = feature_rivals(model, [name for name in settings.against if name == "transformers"])
        functions = {"dino": lambda: feature_of(DinoModel.from_pretrained(ours))}
        if rivals:
            rival = next(iter(rivals.values())).model
            rival.save_pretrained(theirs)
            kwargs = {"add_pooling_layer": False} if model.backbone.has_attention else {}
            functions["transformers"] = lambda: feature_of(type(rival).from_pretrained(theirs, **kwargs))
        functions["reading the file"] = lambda: read_all(load_file(ours / "model.safetensors"))
        bytes_ = (ours / "model.safetensors").stat().st_size
        contest = Contest(
            "loading", name, functions, ["dino", "reading the file"], None, facts={"mib": bytes_ / 2**20}
        )
        return measure(contest, settings)


def feature_of(model: torch.nn.Module) -> torch.Tensor:
    """A number for which all weights must have been read."""
    return read_all(model.state_dict())


def read_all(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of all."""
    return torch.stack([tensor.float().sum() for tensor in tensors.values()]).sum()


BENCHMARKS: dict[str, Callable[[BenchSettings], list[dict]]] = {
    "features": bench_features,
    "latency": bench_latency,
    "attention": bench_attention,
    "training": bench_training,
    "loading": bench_loading,
    "knn": bench_knn,
    "extraction": bench_extraction,
}


__all__ = ["BENCHMARKS"]
