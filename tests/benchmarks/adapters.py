"""
What low-rank adapters spare in training: memory and time of a step, with all weights trained and with adapters.

    python tests/benchmarks/adapters.py --model vit_large

Each is trained in a process of its own, whose greatest memory is read at the end; the time is the median of all steps
but the first.
"""

import multiprocessing
import resource
import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from transformers import TrainerCallback

from modeling_dino import DinoConfig, DinoForPreTraining
from modeling_dino.training.arguments import DinoTrainingArguments
from modeling_dino.training.multi_crop import MultiCrop, MultiCropConfig
from modeling_dino.training.trainer import DinoTrainer
from modeling_dino.training.training_data import MultiCropDataset


class StepTimes(TrainerCallback):
    """Takes the time of each step."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter() - self.start)


def train(backbone: str, lora_rank: int, batch_size: int, num_local_crops: int, steps: int) -> tuple[float, float]:
    """Returns the seconds of a step, and the greatest memory of this process in GiB."""
    torch.manual_seed(0)
    model = DinoForPreTraining(DinoConfig(backbone=backbone, patch_size=16, projection_dim=4096))
    crops = MultiCrop(MultiCropConfig(num_local_crops=num_local_crops))
    data, times = MultiCropDataset(list(torch.rand(2 * batch_size, 3, 256, 256)), crops), StepTimes()
    with TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        size = {"per_device_train_batch_size": batch_size, "max_steps": steps, "lora_rank": lora_rank}
        args = DinoTrainingArguments(folder, gradient_checkpointing=True, **options, **size)
        DinoTrainer(model, args, train_dataset=data, callbacks=[times]).train()
    return median(times.times[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(
    model: Annotated[str, typer.Option(help="A ViT.")] = "vit_base",
    rank: Annotated[int, typer.Option(help="Of the adapters.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 1,
    num_local_crops: Annotated[int, typer.Option(help="Beside two global ones.")] = 4,
    steps: Annotated[int, typer.Option(help="Of each training.")] = 4,
):
    """Prints a table in Markdown, with gradient checkpointing on a CPU."""
    print(f"| {model} | s a step | GiB |\n| --- | --- | --- |")
    for what, lora_rank in (("all weights", 0), (f"adapters of rank {rank}", rank)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory = pool.apply(train, (model, lora_rank, batch_size, num_local_crops, steps))
        print(f"| {what} | {seconds:.2f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
