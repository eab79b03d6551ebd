# SPDX-License-Identifier: Apache-2.0
"""Runs of DINOv2 and DINOv3 in our terms: their networks, losses and rates, and one step of either by hand."""

import re

import torch
from golden_data import with_prefix
from later_dinos import config_of, our_names

from modeling_dino import DinoForPreTraining, Objectives
from modeling_dino.training.loss import pair_shares
from modeling_dino.training.optimization import clip_each_module, layered_parameter_groups, set_rates
from modeling_dino.training.schedules import cosine_schedule, linear_warmup, warmup_cosine_schedule


HEAD_SIZES = {"n_prototypes": "projection_dim", "bottleneck_dim": "head_bottleneck_dim"}
HEAD_SIZES |= {"hidden_dim": "head_hidden_dim", "nlayers": "head_num_layers"}
GLOBAL_CROPS = 2  # the originals have these in their code, not in the settings of a run
STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9


def model_of(settings: dict, tensors: dict[str, torch.Tensor]) -> DinoForPreTraining:
    """Student and teacher at the beginning of a run, which are equal, and the Gram teacher if the run has one."""
    weights = with_prefix(tensors, "student_init.")
    options = {ours: settings["dino"][f"head_{theirs}"] for theirs, ours in HEAD_SIZES.items()}
    options["patch_head"] = settings["ibot"]["separate_head"]
    if options["patch_head"]:
        options |= {f"patch_{ours}": settings["ibot"][f"head_{theirs}"] for theirs, ours in HEAD_SIZES.items()}
    options["head_weight_norm"] = "dino_head.last_layer.weight_v" in weights
    config = config_of(settings["vit"], **{"head_type": "dino", "norm_last_layer": False, **options})
    model = DinoForPreTraining(config)
    for network in (model.student, model.teacher):
        network.load_state_dict(by_our_names(weights))
    if gram_weights := with_prefix(tensors, "gram_teacher_init."):
        model.add_gram_teacher()
        model.gram_teacher.load_state_dict(by_our_names(gram_weights))
    return model.train()


def by_our_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a whole network; blocks in chunks are counted through."""
    backbone = with_prefix(weights, "backbone.")
    counted = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): x for name, x in backbone.items()}
    ours = {f"backbone.{name}": tensor for name, tensor in our_names(counted).items()}
    for theirs, prefix in (("dino_head.", "head."), ("ibot_head.", "patch_head.")):
        ours |= {prefix + name: tensor for name, tensor in with_prefix(weights, theirs).items()}
    return ours


def objectives_of(settings: dict, step: int = 0) -> dict:
    """The arguments of the losses in a step of a run."""
    dino, gram = settings["dino"], settings.get("gram", {"use_loss": False})
    is_balanced = settings.get("centering", "sinkhorn_knopp") == "sinkhorn_knopp"
    objectives = {
        "dino_weight": dino["loss_weight"],
        "dino_local_weight": scheduled(settings, "dino_local_weight", step, 1.0),
        "ibot_weight": settings["ibot"]["loss_weight"],
        "koleo_weight": dino["koleo_loss_weight"],
        "koleo_neighbours": dino.get("koleo_topk", 1),
        "targets": "sinkhorn" if is_balanced else "centering",
    }
    if gram["use_loss"]:
        of_teacher, of_both = gram["remove_only_teacher_neg"], gram["remove_neg"]
        objectives |= {
            "gram_weight": scheduled(settings, "gram_weight", step, gram["loss_weight"]),
            "gram_negatives": "remove_teacher" if of_teacher else "remove" if of_both else "keep",
            "gram_per_image": gram["img_level"],
            "gram_normalize": gram["normalized"],
            "gram_antialias": gram["global_teacher_resize_antialias"],
        }
    return objectives


def crops_of(settings: dict, batch: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor] | torch.Tensor]:
    """A batch as the model takes it."""
    crops = list(batch["collated_global_crops"].chunk(GLOBAL_CROPS))
    crops += batch["collated_local_crops"].chunk(settings["crops"]["local_crops_number"])
    taken = {"pixel_values": crops, "bool_masked_pos": batch["collated_masks"]}
    if "collated_gram_teacher_crops" in batch:
        taken["gram_pixel_values"] = list(batch["collated_gram_teacher_crops"].chunk(GLOBAL_CROPS))
    return taken


def logged_losses(settings: dict, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's losses by our names, none multiplied by anything; DINOv2 logs them multiplied, some halved."""
    shares = pair_shares(GLOBAL_CROPS, settings["crops"]["local_crops_number"])
    is_dinov3 = "schedules" in settings
    of_global, of_local = (1.0, 1.0) if is_dinov3 else (settings["dino"]["loss_weight"] * x for x in shares)
    losses = {
        "dino_global": batch["dino_global_crops_loss"] / of_global,
        "dino_local": batch["dino_local_crops_loss"] / of_local,
        "ibot": batch["ibot_loss"] * (1 if is_dinov3 else 2),
        "koleo": batch["koleo_loss"] * 2 / (1 if is_dinov3 else settings["dino"]["koleo_loss_weight"]),
    }
    return losses | ({"gram": batch["gram_loss"]} if "gram_loss" in batch else {})


def dinov2_rates(settings: dict, step: int) -> dict[str, float]:
    """The rates of a step."""
    optim, teacher, per_epoch = settings["optim"], settings["teacher"], settings["steps_per_epoch"]
    total = optim["epochs"] * per_epoch
    rate = cosine_schedule(step, optim["lr"], optim["min_lr"], total, optim["warmup_epochs"] * per_epoch)
    temperatures = teacher["warmup_teacher_temp"], teacher["teacher_temp"]
    return {
        "lr": rate,
        "last_layer_lr": 0.0 if step < optim["freeze_last_layer_epochs"] * per_epoch else rate,
        "weight_decay": cosine_schedule(step, optim["weight_decay"], optim["weight_decay_end"], total),
        "momentum": cosine_schedule(step, teacher["momentum_teacher"], teacher["final_momentum_teacher"], total),
        "teacher_temp": linear_warmup(step, *temperatures, teacher["warmup_teacher_temp_epochs"] * per_epoch),
    }


def dinov3_schedule(settings: dict, schedule: dict, step: int) -> float:
    """The value of one of DINOv3's schedules at a step."""
    per_epoch = settings["steps_per_epoch"]
    cosine_epochs = schedule.get("cosine_epochs")
    return warmup_cosine_schedule(
        step,
        schedule["start"],
        schedule["peak"],
        schedule["end"],
        settings["optim"]["epochs"] * per_epoch,
        schedule["warmup_epochs"] * per_epoch,
        None if cosine_epochs is None else cosine_epochs * per_epoch,
    )


def dinov3_rates(settings: dict, step: int) -> dict[str, float]:
    """The rates of a step."""
    schedules = settings["schedules"]
    rates = {name: dinov3_schedule(settings, schedule, step) for name, schedule in schedules.items()}
    is_frozen = step < schedules["lr"]["freeze_last_layer_epochs"] * settings["steps_per_epoch"]
    return {**rates, "last_layer_lr": 0.0 if is_frozen else rates["lr"]}


def weight_schedules(settings: dict) -> dict[str, dict]:
    """The schedules of weights in a run, by our names."""
    dino, gram = settings["dino"], settings.get("gram", {"use_loss": False})
    schedules = {}
    if dino.get("reweight_dino_local_loss"):
        schedules["dino_local_weight"] = dino["local_loss_weight_schedule"]
    if gram["use_loss"] and gram["loss_weight_schedule"]:
        schedules["gram_weight"] = gram["loss_weight_schedule"]
    return schedules


def scheduled(settings: dict, name: str, step: int, constant: float) -> float:
    """A weight in a step."""
    schedule = weight_schedules(settings).get(name)
    return constant if schedule is None else dinov3_schedule(settings, schedule, step)


class StepByHand:
    """What a user writes around the model: an optimizer and the updates after it."""

    def __init__(self, settings: dict, model: DinoForPreTraining):
        self.settings, self.model = settings, model
        optim = settings["optim"]
        self.optimizer = torch.optim.AdamW(
            layered_parameter_groups(model.student, optim["layerwise_decay"], optim["patch_embed_lr_mult"]),
            betas=(optim["adamw_beta1"], optim["adamw_beta2"]),
        )
        parts = {"backbone": model.student.backbone, "dino_head": model.student.head}
        parts["ibot_head"] = model.student.patch_head
        self.modules = {name: module for name, module in parts.items() if module is not None}

    def forward(self, batch: dict[str, torch.Tensor], rates: dict[str, float], step: int):
        """The model's output for the batch of a step."""
        return self.model(
            **crops_of(self.settings, batch),
            student_temperature=STUDENT_TEMPERATURE,
            teacher_temperature=rates["teacher_temp"],
            objectives=Objectives(**objectives_of(self.settings, step)),
        )

    def step(self, output, rates: dict[str, float]) -> tuple[dict, dict]:
        """Makes an optimizer step. Returns the gradients before clipping and the norms of their parts."""
        self.optimizer.zero_grad()
        output.loss.backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.model.student.named_parameters()
        }
        norms = dict(zip(self.modules, clip_each_module(self.modules.values(), self.settings["optim"]["clip_grad"])))
        set_rates(self.optimizer, rates["lr"], rates["weight_decay"], rates["last_layer_lr"])
        self.optimizer.step()
        self.model.update_teacher(rates["momentum"])
        if self.settings.get("centering") == "centering":
            self.model.update_center(output.teacher_projection, CENTER_MOMENTUM)
            self.model.update_patch_center(output.teacher_patch_projection, CENTER_MOMENTUM)
        return gradients, norms


def comparable(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights or gradients without those of the keys' biases, which are zero in exact arithmetic, or not used."""
    return {
        name: torch.cat([tensor.chunk(3)[0], tensor.chunk(3)[2]]) if name.endswith("attn.qkv.bias") else tensor
        for name, tensor in weights.items()
    }
