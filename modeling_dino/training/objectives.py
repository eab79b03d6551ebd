# SPDX-License-Identifier: Apache-2.0
"""What student and teacher are trained for: a weighted sum of the losses of `losses/`, and how each is computed.

| | DINO | DINOv2 | DINOv3, then its Gram anchoring |
| --- | --- | --- | --- |
| `dino_weight` | 1 | 1 | 1 |
| `ibot_weight`, `koleo_weight` | 0, 0 | 1, 0.1 | 1, 0.1 |
| `gram_weight` | 0 | 0 | 0, then 2 |
| `targets` | centering | centering, or sinkhorn with a large batch | sinkhorn |

Papers: https://arxiv.org/abs/2104.14294; https://arxiv.org/abs/2304.07193, section 4;
https://arxiv.org/abs/2508.10104, sections 3 and 4.
"""

from dataclasses import dataclass

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoPreTrainedModel, backbone_class
from .loss import check_weights, pair_shares
from .losses.gram import NEGATIVES


TARGETS = ("centering", "sinkhorn")
MASK_TOKEN_MISSING = "has no mask token for the patch loss: set use_mask_token=True in its configuration"


@dataclass(frozen=True)
class Objectives:
    """
    The weights of the losses, and their settings; the defaults are DINO's.

    Args:
        dino_weight: of the cross-entropy between crops, a mean over all pairs of crops.
        dino_local_weight: by which the part of the local crops in it is multiplied besides.
        ibot_weight: of the cross-entropy at masked patches. Half of it is what DINOv2 logs.
        koleo_weight: of KoLeo, summed over the global crops.
        gram_weight: of Gram anchoring.
        targets: how the teacher's outputs become targets: by `"centering"`, or by Sinkhorn-Knopp (`"sinkhorn"`).
        koleo_neighbours: the number of nearest other features that KoLeo pushes away.
        koleo_over_processes: find these among all images of a step, those of other processes and of other parts of an
            accumulated batch, too; if not, among those that a process computes at once.
        gram_per_image: compare the patches of each image with each other; if not, of all images together that a
            process computes at once.
        gram_normalize: scale patch tokens to unit length before.
        gram_negatives: `"keep"` negative similarities, `"remove"` them, or `"remove_teacher"` for the teacher's alone.
        gram_antialias: smooth the Gram teacher's maps before they shrink to the student's grid.

    Raises:
        ValueError: if a value cannot work; the message names it.
    """

    dino_weight: float = 1.0
    dino_local_weight: float = 1.0
    ibot_weight: float = 0.0
    koleo_weight: float = 0.0
    gram_weight: float = 0.0
    targets: str = "centering"
    koleo_neighbours: int = 1
    koleo_over_processes: bool = True
    gram_per_image: bool = True
    gram_normalize: bool = True
    gram_negatives: str = "keep"
    gram_antialias: bool = False

    def __post_init__(self):
        names = ("dino_weight", "ibot_weight", "koleo_weight", "gram_weight")
        check_weights({name: getattr(self, name) for name in names})
        check_weights({"dino_local_weight": self.dino_local_weight, "dino_weight": 1.0})
        for name, allowed in (("targets", TARGETS), ("gram_negatives", NEGATIVES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.koleo_neighbours < 1:
            raise ValueError(f"koleo_neighbours={self.koleo_neighbours} must be at least 1")

    @property
    def is_dino_alone(self) -> bool:
        """Whether the loss of all crops together, DINO's, is the only one; it is then not computed in two parts."""
        others = (self.ibot_weight, self.koleo_weight, self.gram_weight)
        return not any(others) and self.dino_local_weight == 1

    @property
    def balances_step(self) -> bool:
        """Whether the targets depend on all images of a step."""
        return self.targets == "sinkhorn" and bool(self.dino_weight or self.ibot_weight)

    @property
    def spreads_step(self) -> bool:
        """Whether the student's features of all images of a step are compared."""
        return bool(self.koleo_weight) and self.koleo_over_processes

    @property
    def uses_patches(self) -> bool:
        """Whether a loss is computed of patch tokens."""
        return bool(self.ibot_weight or self.gram_weight)

    def weights(self, num_global_crops: int, num_local_crops: int) -> dict[str, float]:
        """
        Returns the weight of each loss that is computed, by its name.

        DINO's loss is `dino` if it is the only one; else `dino_global` and `dino_local` are its parts, which are
        weighted by their pairs of crops.
        """
        weights = {"ibot": self.ibot_weight, "koleo": self.koleo_weight, "gram": self.gram_weight}
        if self.is_dino_alone:
            weights["dino"] = self.dino_weight
        elif self.dino_weight:
            of_global, of_local = pair_shares(num_global_crops, num_local_crops)
            weights["dino_global"] = self.dino_weight * of_global
            weights["dino_local"] = self.dino_weight * of_local * self.dino_local_weight
        return {name: weight for name, weight in weights.items() if weight}


def check_objectives(model: DinoPreTrainedModel, objectives: Objectives):
    """
    Checks whether student and teacher can be trained for these objectives.

    Raises:
        ValueError: if the backbone has no patch tokens or no mask token where a loss needs them, or there is no Gram
            teacher; one line says what to change.
    """
    config = model.config
    check_backbone(config, objectives)
    if objectives.gram_weight and model.gram_teacher is None:
        raise ValueError("gram_weight needs a Gram teacher: call add_gram_teacher() on the model")


def check_backbone(config: DinoConfig, objectives: Objectives, needs_mask_token: bool = True):
    """Raises ValueError if a backbone of this configuration lacks what a loss needs; a teacher needs no mask token."""
    needed_by = [name for name in ("ibot_weight", "gram_weight") if getattr(objectives, name)]
    if needed_by and not backbone_class(config).has_patch_tokens:
        raise ValueError(
            f"{config.backbone} has no patch tokens, which {' and '.join(needed_by)} need: take a ViT, or set "
            f"{' and '.join(f'{name}=0' for name in needed_by)}"
        )
    if objectives.ibot_weight and needs_mask_token and not config.use_mask_token:
        raise ValueError(f"{config.backbone} {MASK_TOKEN_MISSING}, or ibot_weight=0")


def leaves_parameters_out(config: DinoConfig, objectives: Objectives) -> bool:
    """Returns whether there are parameters of the student that no loss reaches, so that they get no gradient."""
    return (
        not objectives.dino_weight
        or (not objectives.ibot_weight and (config.use_mask_token or config.patch_head))
        or (not objectives.uses_patches and config.untie_cls_and_patch_norms)
        or config.untie_global_and_local_cls_norm  # of local crops, of which there may be none
    )
