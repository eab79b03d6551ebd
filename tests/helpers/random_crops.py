"""Runs of the trainer on random images: crops that depend on seed, epoch and index alone."""

from pathlib import Path

import torch
from golden_data import assert_close
from tiny_models import tiny_config
from torch.utils.data import Dataset
from transformers import TrainerCallback

from modeling_dino import DinoForPreTraining
from modeling_dino.training.arguments import DinoTrainingArguments
from modeling_dino.training.multi_crop import MultiCrop, MultiCropConfig
from modeling_dino.training.trainer import DinoTrainer
from modeling_dino.training.training_data import MultiCropDataset


# losses and settings of DINOv2 and DINOv3, for the families of these names
OBJECTIVES = {
    "dinov2": {"ibot_weight": 1.0, "koleo_weight": 0.1},
    "dinov3": {"ibot_weight": 1.0, "koleo_weight": 0.1, "targets": "sinkhorn", "koleo_neighbours": 2},
}
OBJECTIVES["dinov3"] |= {"gram_weight": 1.0, "gram_update_steps": 3, "exact_masks": True}
for _settings in OBJECTIVES.values():
    _settings |= {"clip": "module", "freeze_last_layer": "rate", "layer_decay": 0.9, "patch_embed_multiplier": 0.2}


class RandomCrops(Dataset):
    """Noisy copies of random images, each with a pattern of its own; so that there is something to learn."""

    def __init__(self, num_images: int = 16, sizes: tuple[int, ...] = (32, 32, 16), noise: float = 0.3):
        self.num_images, self.sizes, self.noise, self.epoch = num_images, sizes, noise, 0

    def __len__(self) -> int:
        return self.num_images

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        pattern = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(index))
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        crops = []
        for size in self.sizes:
            image = pattern.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2)
            crops.append(image + self.noise * torch.randn(3, size, size, generator=generator))
        return {"pixel_values": crops}


SEVERAL_SIZES = MultiCropConfig(global_crop_size=(32, 48), local_crop_size=(24, 16), num_local_crops=1)


def crops_of_several_sizes(num_images: int = 16) -> MultiCropDataset:
    """Crops of random images, in each step of one of two sizes."""
    images = [torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(number)) for number in range(num_images)]
    return MultiCropDataset(images, MultiCrop(SEVERAL_SIZES))


def tiny_model(family: str = "vit", **overrides) -> DinoForPreTraining:
    """The same for every call."""
    torch.manual_seed(7)
    return DinoForPreTraining(tiny_config(family, **overrides))


def arguments(folder: Path, **overrides) -> DinoTrainingArguments:
    """A short run on a CPU that logs every step, and saves nothing unless told to."""
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "warmup_epochs": 1,
        "teacher_momentum": 0.9,
    }
    return DinoTrainingArguments(str(folder), **{**defaults, **overrides})


def trainer_of(folder: Path, model: DinoForPreTraining | None = None, data: Dataset | None = None, **overrides):
    """A trainer of a tiny model on random crops."""
    return DinoTrainer(model or tiny_model(), arguments(folder, **overrides), train_dataset=data or RandomCrops())


def losses_of(trainer: DinoTrainer) -> list[float]:
    """The loss of each step that was logged."""
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


def without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The key third of this bias has no gradient in exact arithmetic, so that Adam moves it by rounding noise."""
    return tensor.unflatten(0, (3, -1))[[0, 2]] if name.endswith("attn.qkv.bias") else tensor


def assert_close_weights(a: dict, b: dict, tolerance: float = 2e-4):
    assert a.keys() == b.keys()
    for name in a:
        if a[name].is_floating_point() and a[name].any():
            assert_close(without_key_bias(name, a[name]), without_key_bias(name, b[name]), tolerance)


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends the process's work in the middle of a step, after the backward pass."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
