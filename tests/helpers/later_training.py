# SPDX-License-Identifier: Apache-2.0
"""Runs of DINOv2 and DINOv3 by our functions: their networks and settings in our terms, and one step of either."""

import re
from dataclasses import dataclass, field

import torch
from golden_data import with_prefix
from later_dinos import config_of, our_names

from modeling_dino import DinoModel
from modeling_dino.training.loss import pair_shares, weighted_sum
from modeling_dino.training.losses.centering import centered_softmax, update_center
from modeling_dino.training.losses.dino import cross_view_entropy
from modeling_dino.training.losses.gram import gram_loss, resize_patches
from modeling_dino.training.losses.ibot import ibot_loss, masked_tokens
from modeling_dino.training.losses.koleo import koleo_loss
from modeling_dino.training.losses.sinkhorn import sinkhorn_knopp
from modeling_dino.training.masking import MaskBatch, mask_batch
from modeling_dino.training.optimization import clip_each_module, layered_parameter_groups, set_rates


HEAD_SIZES = {"n_prototypes": "projection_dim", "bottleneck_dim": "head_bottleneck_dim"}
HEAD_SIZES |= {"hidden_dim": "head_hidden_dim", "nlayers": "head_num_layers"}
GLOBAL_CROPS = 2  # the originals have these in their code, not in the settings of a run
STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9


def network_of(settings: dict, weights: dict[str, torch.Tensor]) -> DinoModel:
    """A student or teacher, from the original's settings and weights."""
    options = {ours: settings["dino"][f"head_{theirs}"] for theirs, ours in HEAD_SIZES.items()}
    options["patch_head"] = settings["ibot"]["separate_head"]
    if options["patch_head"]:
        options |= {f"patch_{ours}": settings["ibot"][f"head_{theirs}"] for theirs, ours in HEAD_SIZES.items()}
    options["head_weight_norm"] = "dino_head.last_layer.weight_v" in weights
    model = DinoModel(config_of(settings["vit"], **{"head_type": "dino", "norm_last_layer": False, **options}))
    model.load_state_dict(by_our_names(weights))
    return model


def backbone_of(settings: dict, weights: dict[str, torch.Tensor]) -> DinoModel:
    """A gram teacher, which has no heads."""
    model = DinoModel(config_of(settings["vit"], untie_global_and_local_cls_norm=False))
    model.load_state_dict(by_our_names(weights))
    return model.eval()


def by_our_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a whole network; blocks in chunks are counted through."""
    backbone = with_prefix(weights, "backbone.")
    counted = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): x for name, x in backbone.items()}
    ours = {f"backbone.{name}": tensor for name, tensor in our_names(counted).items()}
    for theirs, prefix in (("dino_head.", "head."), ("ibot_head.", "patch_head.")):
        ours |= {prefix + name: tensor for name, tensor in with_prefix(weights, theirs).items()}
    return ours


@dataclass
class LaterRun:
    """
    Student, teacher and what else changes in a run.

    Args:
        settings: the original's.
        multipliers: of the losses.
        koleo_neighbours: of KoLeo.
        gram_teacher: None where there is no gram loss.
    """

    settings: dict
    student: DinoModel
    teacher: DinoModel
    multipliers: dict[str, float]
    koleo_neighbours: int = 1
    gram_teacher: DinoModel | None = None
    centers: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        optim = self.settings["optim"]
        self.student.train()
        self.teacher.eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            layered_parameter_groups(self.student, optim["layerwise_decay"], optim["patch_embed_lr_mult"]),
            betas=(optim["adamw_beta1"], optim["adamw_beta2"]),
        )
        self.modules = {"backbone": self.student.backbone, "dino_head": self.student.head}
        if self.student.patch_head is not None:
            self.modules["ibot_head"] = self.student.patch_head

    def losses(self, batch: dict[str, torch.Tensor], temperature: float) -> dict[str, torch.Tensor]:
        """The losses of a batch by their names, none multiplied by anything."""
        masks = mask_batch(batch["collated_masks"])
        images = batch["collated_global_crops"]
        crop_targets, patch_targets = self.targets(images, masks, temperature)
        seen = self.student(images, bool_masked_pos=masks.masks)
        local = self.student(batch["collated_local_crops"], local_crops=True)
        patches = self.student.project_patches(masked_tokens(seen.patch_tokens, masks.indices))
        losses = {
            "dino_global": cross_view_entropy(seen.projection, crop_targets, STUDENT_TEMPERATURE),
            "dino_local": cross_view_entropy(local.projection, crop_targets, STUDENT_TEMPERATURE, False),
            "ibot": ibot_loss(patches, patch_targets, masks.weights, len(images), STUDENT_TEMPERATURE),
            "koleo": sum(koleo_loss(x, self.koleo_neighbours) for x in seen.pooler_output.chunk(GLOBAL_CROPS)),
        }
        if self.gram_teacher is not None:
            losses["gram"] = self.gram(seen.patch_tokens, images, batch["collated_gram_teacher_crops"])
        return losses

    @torch.no_grad()
    def targets(self, images: torch.Tensor, masks: MaskBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What the teacher says of the crops, (G, B, K), and of the masked patches (M, K)."""
        output = self.teacher(images)
        outputs = {
            "dino": output.projection,
            "ibot": self.teacher.project_patches(masked_tokens(output.patch_tokens, masks.indices)),
        }
        if self.settings.get("centering", "sinkhorn_knopp") == "sinkhorn_knopp":
            targets = {name: sinkhorn_knopp(output, temperature) for name, output in outputs.items()}
        else:
            targets = {}
            for name, output in outputs.items():
                center = self.centers.setdefault(name, torch.zeros(1, output.shape[1]))
                targets[name] = centered_softmax(output, center, temperature)
                update_center(center, output, CENTER_MOMENTUM)
        return targets["dino"].unflatten(0, (GLOBAL_CROPS, -1)), targets["ibot"]

    def gram(self, patch_tokens: torch.Tensor, images: torch.Tensor, larger: torch.Tensor) -> torch.Tensor:
        """The gram loss, with the gram teacher's tokens of larger crops resized."""
        grid, larger_grid = self.student.backbone.grid(images), self.student.backbone.grid(larger)
        settings = self.settings["gram"]
        with torch.no_grad():
            wanted = self.gram_teacher(larger).patch_tokens
        wanted = resize_patches(wanted, larger_grid, grid, settings["global_teacher_resize_antialias"])
        return gram_loss(
            patch_tokens, wanted, per_image=settings["img_level"], normalize=settings["normalized"], negatives="keep"
        )

    def step(self, losses: dict[str, torch.Tensor], rates: dict[str, float]) -> tuple[torch.Tensor, dict]:
        """Makes an optimizer step. Returns what was differentiated, the gradients and the norms of their parts."""
        total = weighted_sum(losses, self.multipliers)
        self.optimizer.zero_grad()
        total.backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.student.named_parameters()
        }
        norms = dict(zip(self.modules, clip_each_module(self.modules.values(), self.settings["optim"]["clip_grad"])))
        set_rates(self.optimizer, rates["lr"], rates["weight_decay"], rates["last_layer_lr"])
        self.optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(self.teacher.parameters(), self.student.parameters()):
                ours.lerp_(theirs, 1 - rates["momentum"])
        return total.detach(), {"gradients": gradients, "norms": norms}


def dino_multipliers(settings: dict, local_weight: float = 1.0) -> dict[str, float]:
    """The multipliers of the losses of global and local crops."""
    weight = settings["dino"]["loss_weight"]
    of_global, of_local = pair_shares(GLOBAL_CROPS, settings["crops"]["local_crops_number"])
    return {"dino_global": weight * of_global, "dino_local": weight * of_local * local_weight}


def comparable(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights or gradients without those of the keys' biases, which are zero in exact arithmetic, or not used."""
    return {
        name: torch.cat([tensor.chunk(3)[0], tensor.chunk(3)[2]]) if name.endswith("attn.qkv.bias") else tensor
        for name, tensor in weights.items()
    }
