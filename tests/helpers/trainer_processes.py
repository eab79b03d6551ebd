"""Runs of the trainer in several processes, for test_trainer_processes.py: what each ends with goes to a file."""

import sys
from dataclasses import fields
from pathlib import Path

import torch
from random_crops import OBJECTIVES, RandomCrops, arguments, crops_of_several_sizes, losses_of, tiny_model, trainer_of
from tiny_models import tiny_config
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import modeling_dino.training.trainer as trainer_module
from modeling_dino import DinoModel, Objectives
from modeling_dino.runtime.processes import leave_processes
from modeling_dino.training.masking import mask_batch
from modeling_dino.training.optimization import clip_each_gradient, parameter_groups, set_rates
from modeling_dino.training.trainer import collate_crops, draw_step_masks
from modeling_dino.training.whole_steps import know_step


ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
SCENARIOS = {  # family, and arguments of the run
    "vit": ("vit", {}),
    "accumulated": ("vit", ACCUMULATED),
    "checkpointed": ("vit", {"gradient_checkpointing": True}),
    "resnet": ("resnet", {}),
    "dinov2": ("dinov2", OBJECTIVES["dinov2"]),
    "dinov3": ("dinov3", OBJECTIVES["dinov3"]),
    "patches": ("dinov2", {"ibot_weight": 1.0}),
    "patches accumulated": ("dinov2", {"ibot_weight": 1.0, **ACCUMULATED}),
    "dinov2 accumulated": ("dinov2", {**OBJECTIVES["dinov2"], **ACCUMULATED}),
    "dinov3 accumulated": ("dinov3", {**OBJECTIVES["dinov3"], **ACCUMULATED}),
    # of AdamW the first step after the backbone is trained is the gradient's sign, which rounding can turn
    "frozen backbone": ("resnet", {"freeze_backbone_epochs": 1, "optim": "sgd"}),
    "adapters": ("vit", {"lora_rank": 2}),
    "plain loss of a dinov2": ("dinov2", {}),  # whose mask token then gets no gradient
    "several sizes": ("dinov2", OBJECTIVES["dinov2"]),
    "several sizes accumulated": ("dinov2", {**OBJECTIVES["dinov2"], **ACCUMULATED}),
}
# in one process, which takes the batch at once
SAME_AS = {"accumulated": "vit", "checkpointed": "vit", "patches accumulated": "patches"}
SAME_AS |= {f"{name} accumulated": name for name in ("dinov2", "dinov3", "several sizes")}
SHARDED = ("vit", *OBJECTIVES)
BATCH_SIZE = 4  # of all processes


def run(name: str, folder: Path, num_processes: int, resume: bool = False):
    """Trains the model of a scenario, and saves what it ended with."""
    family, options = SCENARIOS[name]
    defaults = {"per_device_train_batch_size": BATCH_SIZE // num_processes, "save_strategy": "steps", "save_steps": 3}
    data = crops_of_several_sizes() if name.startswith("several sizes") else RandomCrops()
    trainer = trainer_of(folder, tiny_model(family), data, **{**defaults, **options})
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        torch.save({"losses": losses_of(trainer), "state_dict": trainer.model.state_dict()}, folder / "end.pt")


def run_sharded(family: str, folder: Path, rank: int, num_processes: int) -> dict[str, torch.Tensor]:
    """Some steps by hand, of a model that is sharded (FSDP 2) if there are several processes, with the losses of its
    family; with Sinkhorn-Knopp in parts. Accelerate does not shard on a CPU, so the trainer cannot be asked."""
    names = {field.name for field in fields(Objectives)}
    objectives = Objectives(**{name: x for name, x in OBJECTIVES.get(family, {}).items() if name in names})
    model = tiny_model(family).train()
    if objectives.gram_weight:
        model.add_gram_teacher()
    if num_processes > 1:
        for network in (model.student, model.teacher, *filter(None, [model.gram_teacher])):
            for block in network.backbone.blocks:
                fully_shard(block)
        fully_shard(model)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-3)
    data = RandomCrops()
    size = BATCH_SIZE // num_processes
    for step in range(4):
        images = [data[i] for i in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)]
        masks = None
        if objectives.ibot_weight:
            grid = (images[0]["pixel_values"][0].shape[-1] // model.config.patch_size,) * 2
            args = arguments(folder, per_device_train_batch_size=size, ibot_weight=1.0)
            masks = draw_step_masks(args, step, grid)  # the same in all processes, of all images
        is_accumulated = num_processes > 1 and objectives.targets == "sinkhorn"
        of_process = range(rank * size, (rank + 1) * size)
        parts = []
        for rows in [[i] for i in of_process] if is_accumulated else [list(of_process)]:
            parts.append({**collate_crops([images[i] for i in rows]), "objectives": objectives})
            if masks is not None:
                parts[-1]["bool_masked_pos"] = mask_batch(masks[:, rows].flatten(0, 1))
        known = [None]
        if is_accumulated:
            with torch.no_grad():
                known = know_step([model(**part, preview=0) for part in parts], objectives, teacher_temperature=0.04)
        for part, of_step in zip(parts, known):
            output = model(**part, known=of_step)
            (output.loss / len(parts)).backward()
        clip_each_gradient(model.parameters(), max_norm=0.1)
        set_rates(optimizer, learning_rate=1e-3, weight_decay=0.1)
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.9)
        if objectives.targets == "centering":
            model.update_center(output.teacher_projection)
            if objectives.ibot_weight:
                model.update_patch_center(output.teacher_patch_projection)
    return {name: getattr(x, "full_tensor", lambda x=x: x)().clone() for name, x in model.state_dict().items()}


class Classifier(torch.nn.Module):
    """What a user writes around a backbone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = DinoModel(tiny_config(head_type=None))
        self.classifier = torch.nn.Linear(self.model.config.hidden_size, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.model(pixel_values).pooler_output)


def run_classifier(rank: int, num_processes: int) -> dict[str, torch.Tensor]:
    """Some steps of a classifier of a user's own, each with a part of every batch."""
    model = Classifier().train()
    wrapped = DistributedDataParallel(model, find_unused_parameters=False) if num_processes > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(BATCH_SIZE, 3, 32, 32, generator=generator).chunk(num_processes)[rank]
        labels = torch.randint(3, (BATCH_SIZE,), generator=generator).chunk(num_processes)[rank]
        torch.nn.functional.cross_entropy(wrapped(images), labels).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def main(folder: Path):
    """All scenarios, in each of two processes, without curves, which take longer than all else."""
    trainer_module.draw_curves = lambda *_: None
    for name in SCENARIOS:
        run(name, folder / name, num_processes=2)
    rank = torch.distributed.get_rank()
    sharded = {family: run_sharded(family, folder, rank, num_processes=2) for family in SHARDED}
    classifier = run_classifier(rank, num_processes=2)
    if rank == 0:
        torch.save(sharded, folder / "sharded.pt")
        torch.save(classifier, folder / "classifier.pt")
    leave_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
